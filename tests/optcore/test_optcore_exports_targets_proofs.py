"""One calibrated state in many targets: `six-targets.yaml` and `phone.yaml` of the docs, beside single targets."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures.engine_runs import Ran, run_program

from optcore.report import Report
from optcore.report.text import render_table
from optcore.verify import verify

pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.timeout(1800)]
RECIPES = Path(__file__).parents[2] / "docs" / "recipes"


def document(name: str, model: Path) -> dict[str, Any]:
    """A recipe of the docs, on the model where it lies here."""
    found: dict[str, Any] = yaml.safe_load((RECIPES / name).read_text())
    return {**found, "model": {"path": str(model)}}


def seconds(ran: Ran, *kinds: str) -> float:
    """What its stages took, of all kinds or of some."""
    return sum(s.seconds for name, s in ran.stages.items() if not kinds or any(f"-{kind}" in name for kind in kinds))


def test_one_calibrated_state_in_six_targets(stdlib_model: Path, tmp_path: Path) -> None:
    """Acceptance 5: a job that calibrates and writes all takes at most 1.5 times as long as the slowest for one.

    What engines make of each result is measured for each of them, and counted on neither side.
    """
    recipe = {**document("six-targets.yaml", stdlib_model), "evaluate": []}
    (tmp_path / "all").mkdir()
    together = run_program(recipe, tmp_path / "all", "out")
    alone: dict[str, float] = {}
    for target in ({"format": "compressed-tensors"}, *recipe["also"]):
        folder = tmp_path / target["format"]
        folder.mkdir()
        ran = run_program({**recipe, "target": target, "also": []}, folder, "out")
        alone[target["format"]] = seconds(ran)
        print(f"{target['format']} alone: {seconds(ran):.1f} s, its export {seconds(ran, 'export'):.1f} s")
    slowest, whole = max(alone.values()), seconds(together)
    exports = seconds(together, "export")
    print(f"six in one job: {whole:.1f} s, exports {exports:.1f} s: {whole / slowest:.2f} times {slowest:.1f} s")
    assert sum(name.endswith("-ptq") for name in together.stages) == 1, "calibrated once"
    assert len(list((together.out / "also").iterdir())) == 5
    assert not verify(together.out)
    assert whole <= 1.5 * slowest


def test_the_phone_path(stdlib_model: Path, tmp_path: Path) -> None:
    """INT4 by GPTQ as ONNX and as GGUF: each engine is as far from the source as was simulated."""
    ran = run_program(document("phone.yaml", stdlib_model), tmp_path, "out")
    report = Report.model_validate(ran.report())
    print(render_table(report))
    simulated = next(row.result for row in report.measurements if row.name == "mean_kl")
    runs = {run.engine: run for run in report.engine_runs if not run.is_source}
    assert runs.keys() == {"onnxruntime-genai", "llama.cpp"}
    for run in runs.values():
        assert run.kl == pytest.approx(simulated, rel=0.15), "other windows of the same text"
        assert run.file_bytes < report.measurements[0].source  # type: ignore[operator]
    names = {path.name for path in ran.out.rglob("*")}
    assert {"model.onnx", "genai_config.json", "model.gguf", "imatrix.gguf"} <= names
    assert json.loads((ran.out / "manifest.json").read_text())["lineage"]
