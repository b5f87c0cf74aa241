"""What distillation wins back of shared numbers, and tied layers beside dropped ones; it prints its figures."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import run_of
from fixtures.tiny_models import MakeModel
from fixtures.training import prepared
from fixtures.training_stages import MakeStage
from safetensors.torch import load_file

from optcore.compact import load_compact
from optcore.evaluate.fidelity_stream import compare
from optcore.export import Compact
from optcore.references import Calibration
from optcore.techniques import Distill, Finetune, HashShare, Palettize, Prune, TieLayers
from optcore.techniques.base import Technique

pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.timeout(7200)]
CALIBRATION = Calibration(dataset="python-stdlib", samples=64, sequence_length=128)
TRAINING = {"steps": 200, "batch": 8, "sequence_length": 128, "learning_rate": 1e-3}


@pytest.mark.parametrize("technique", [HashShare(ratio=0.5), Palettize(bits=2)], ids=["hash_share", "palettize"])
def test_e3_distillation_wins_back_half(technique: Technique, stdlib_model: Path, tmp_path: Path) -> None:
    """200 steps of 8 x 128 tokens; KL in nats a token to the dense model, 64 windows of 128; every bit compared."""
    before, after, sizes = _distilled(technique, stdlib_model, tmp_path)
    assert sizes[0] == sizes[1]
    assert after < 0.5 * before


def test_e4_tied_layers_beside_dropped_ones(stdlib_model: Path, tmp_path: Path) -> None:
    """One layer's matrices less; the dropped layer also lets a token go through one layer less."""
    techniques = (TieLayers(ties=1), TieLayers(ties=1, value="first"), TieLayers(ties=1, order="random"))
    found = [
        _distilled(technique, stdlib_model, tmp_path / str(number))
        for number, technique in enumerate((*techniques, Prune(depth=1)))
    ]
    assert max(size for *_, sizes in found for size in sizes) < 1.001 * min(
        size for *_, sizes in found for size in sizes
    )
    assert all(after < before for before, after, _ in found)


@pytest.mark.parametrize("technique", [Palettize(bits=2, group=24, sensitivity="none"), TieLayers(runs=((0, 1),))])
def test_two_processes_share_as_one_does(
    technique: Technique, tiny_model: MakeModel, training_stage: MakeStage, tmp_path: Path
) -> None:
    source = tiny_model("Llama")  # routers turn the last bits of a sum into other experts
    made = run_of(source, source, tmp_path / "made")
    technique.apply(made)
    settings: dict[str, Any] = {"steps": 4, "learning_rate": 0.003, "schedule": "constant", "warmup": 0, "batch": 4}
    training = Finetune.model_validate({**settings, "sequence_length": 32, "validation": {"samples": 2, "every": 1}})
    stage = training_stage(made.out, training, "")
    alone, together = stage.run("alone"), stage.run("together", processes=2)
    worst = max(abs(a - b) for a, b in zip(alone.losses, together.losses, strict=True))
    print(f"\n{technique.summary}: largest difference of a loss {worst:.1e}")
    assert together.results["training"]["best_step"] == alone.results["training"]["best_step"] > 0
    assert worst < 1e-4
    one, other = (load_file(folder / "model.safetensors") for folder in (alone.files, together.files))
    assert all(torch.allclose(one[name].float(), other[name].float(), atol=2e-2) for name in one)


def _distilled(technique: Technique, model: Path, folder: Path) -> tuple[float, float, list[int]]:
    """KL of what a technique makes before and after distillation, and bytes of the compact files' data; printed."""
    torch.set_num_threads(1)
    made = run_of(model, model, folder / "made", calibration=CALIBRATION)
    technique.apply(made)
    training = Distill.model_validate(TRAINING)
    run = run_of(model, made.out, folder / "distilled", calibration=CALIBRATION)
    run.teacher = model
    prepared(run, training, folder / "windows", calibration=CALIBRATION)
    training.apply(run)
    found, sizes = [], []
    for checkpoint in (made.out, run.out):
        of_it = folder / f"{checkpoint.name}-compact"
        Compact().write(run_of(model, checkpoint, of_it, calibration=CALIBRATION))
        sizes.append(load_compact(of_it).data_bytes)
        measuring = run_of(model, checkpoint, folder / f"{checkpoint.name}-measured", calibration=CALIBRATION)
        found.append(compare(measuring, 64, 128)[0]["result"])
    before, after = found
    print(
        f"{technique.summary}: KL {before.mean_kl:.4f} -> {after.mean_kl:.4f}, "
        f"top-1 {before.agreement:.2%} -> {after.agreement:.2%}, {sizes[1]} bytes"
    )
    return before.mean_kl, after.mean_kl, sizes
