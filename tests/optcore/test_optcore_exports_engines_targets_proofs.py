"""Engines compared on our own files: GGUF, ONNX and packed safetensors of one state in one job."""

from pathlib import Path

import pytest
from fixtures.engine_runs import recipe_for, run_program

from optcore.report import Report
from optcore.report.text import render_table

pytestmark = [pytest.mark.proof, pytest.mark.slow]


def test_one_job_compares_the_engines_of_three_targets(stdlib_model: Path, tmp_path: Path) -> None:
    """The same int4 codes decoded by three engines are equally far from the source."""
    also = [{"format": "gguf", "plain": "f32"}, {"format": "onnx"}]
    document = recipe_for(
        stdlib_model, {"technique": "ptq", "scheme": "int4_g32"}, also=also, evaluate=[{"evaluator": "engines"}]
    )
    report = Report.model_validate(run_program(document, tmp_path, "out").report())
    print(render_table(report))
    engines = [run.engine for run in report.engine_runs]
    assert engines == ["transformers", "transformers", "llama.cpp", "onnxruntime-genai"]
    kl = [run.kl or 0 for run in report.engine_runs[1:]]
    assert max(kl) < 1.1 * min(kl), kl
