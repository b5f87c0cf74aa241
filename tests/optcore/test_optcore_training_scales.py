"""What scales of weights do while weights train, and that a checkpoint is given back where nothing was won."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import Quantize, described, run_of
from fixtures.training import training_run
from fixtures.training_stages import MakeStage

from optcore.evaluate.fidelity_stream import compare
from optcore.quantization import QuantizedLayer
from optcore.run import Run
from optcore.techniques import Qad
from optcore.training.quantized_stage import policy_of

torch.set_num_threads(1)
SEARCHED: dict[str, Any] = {"scheme": "int3_g32", "scale_search": "mse"}
SHORT: dict[str, Any] = {
    "steps": 2,
    "batch": 4,
    "sequence_length": 48,
    "learning_rate": 3e-4,
    "validation": {"samples": 4, "every": 2},
    "skip_below": 0,
}
RUIN: dict[str, Any] = {"learning_rate": 1.0, "schedule": "constant", "warmup": 0.0}


def _trained(checkpoint: Path, model: Path, folder: Path, **more: Any) -> Run:
    technique = Qad.model_validate({**SHORT, **more})
    run = training_run(technique, model, checkpoint, folder)
    technique.apply(run)
    return run


def _files(folder: Path) -> dict[str, bytes]:
    """All that a quantized checkpoint is, its description included."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("quanti*"))}


@pytest.mark.parametrize(
    "more",
    [{"skip_below": 10.0}, RUIN, {**RUIN, "scope": "lora"}, {**RUIN, "scope": "block"}],
    ids=["skipped", "full", "lora", "block"],
)
def test_a_searched_checkpoint_is_given_back_where_maxima_win_nothing(
    more: dict[str, Any], quantized: Quantize, stdlib_model: Path, tmp_path: Path
) -> None:
    """And it is what candidate 0 was measured as, not its masters under other scales."""
    checkpoint = quantized(**SEARCHED)
    found: list[Any] = []
    for scales in ("recompute", "freeze"):
        run = _trained(checkpoint, stdlib_model, tmp_path / scales, scales=scales, **more)
        assert _files(run.out) == _files(checkpoint)
        found.append(run.results["training"])
        assert "merge" not in run.results
    assert found[0]["start"] == found[0]["best"] == found[1]["start"]
    assert [one["start"] for one in found[0].get("blocks", [])] == [one["start"] for one in found[1].get("blocks", [])]


def test_a_layer_that_wins_nothing_keeps_its_scales(stdlib_model: Path, training_stage: MakeStage) -> None:
    technique = Qad.model_validate({**SHORT, **RUIN, "scope": "block", "scales": "recompute"})
    stage = training_stage(stdlib_model, technique, **SEARCHED)
    stage.run("ruined")
    records = sorted((stage.folder / "ruined" / "journal").glob("0*.json"))
    kept = tuple(QuantizedLayer.model_validate_json(path.read_text()) for path in records)
    assert kept == described(stage.checkpoint).layers


@pytest.mark.parametrize(
    ("search", "more", "searched"),
    [
        ("mse", {"scales": "recompute"}, False),
        ("mse", {"scales": "auto"}, True),
        ("max", {"scales": "auto"}, False),
        ("max", {"scope": "scales", "learning_rate": 1e-2}, True),
        ("mse", {"scales": "recompute", "scope": "block"}, False),
    ],
    ids=["recompute", "searched", "maxima", "learned", "block"],
)
def test_a_trained_checkpoint_says_what_its_scales_are(
    search: str, more: dict[str, Any], searched: bool, quantized: Quantize, stdlib_model: Path, tmp_path: Path
) -> None:
    """A later stage goes by it; the report compares with plain maxima whatever it is."""
    checkpoint = quantized("int3_g32", scale_search=search)
    run = _trained(checkpoint, stdlib_model, tmp_path, **{"steps": 10, **more})
    found: Any = run.results["training"]
    assert found["best"]["kl"] < found["start"]["kl"]
    description = described(run.out)
    assert (description.searched, description.trained) == (searched, True)
    assert policy_of(Qad(), description) == ("freeze" if searched else "recompute")
    measured, _ = compare(run_of(stdlib_model, run.out, tmp_path / "measured"), 2, 32)
    assert set(measured) == {"source", "result", "baseline"}
