"""What masked distillation wins back of 2:4 sparsity, on the shipped model and held-out text; it prints its figures."""

from pathlib import Path

import pytest
import torch
from fixtures.exporting import run_of
from fixtures.tiny_models import MakeModel
from fixtures.training import prepared
from fixtures.training_stages import MakeStage
from safetensors.torch import load_file

from optcore.evaluate.fidelity_stream import compare
from optcore.references import Calibration
from optcore.sparsity import load_sparsity
from optcore.techniques import Distill, Finetune, Sparsify

pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.timeout(3600)]
CALIBRATION = Calibration(dataset="python-stdlib", samples=128, sequence_length=128)
TRAINING = {
    "steps": 200,
    "batch": 8,
    "sequence_length": 128,
    "learning_rate": 7e-4,
    "losses": [{"kind": "forward_kl"}, {"kind": "hidden_mse"}],  # SquareHead
}


def test_c2_masked_distillation_wins_back_half(stdlib_model: Path, tmp_path: Path) -> None:
    """SparseGPT 2:4, then 200 steps of 8 x 128 tokens; KL in nats a token to the dense model, 64 windows of 128."""
    torch.set_num_threads(1)
    sparse = run_of(stdlib_model, stdlib_model, tmp_path / "sparse", calibration=CALIBRATION)
    Sparsify(method="sparsegpt", pattern="2:4").apply(sparse)
    technique = Distill.model_validate(TRAINING)
    run = run_of(stdlib_model, sparse.out, tmp_path / "distilled", calibration=CALIBRATION)
    run.teacher = stdlib_model
    prepared(run, technique, tmp_path / "windows", calibration=CALIBRATION)
    technique.apply(run)
    found = {}
    for name, folder in (("one-shot", sparse.out), ("distilled", run.out)):
        measuring = run_of(stdlib_model, folder, tmp_path / f"measured-{name}", calibration=CALIBRATION)
        divergence = compare(measuring, 64, 128)[0]["result"]
        found[name] = divergence.mean_kl
        print(f"2:4 {name:<10} KL {divergence.mean_kl:.5f}  top-1 {divergence.agreement:.2%}")
    recovered = 1 - found["distilled"] / found["one-shot"]
    before, after = (load_file(folder / "model.safetensors") for folder in (sparse.out, run.out))
    described = load_sparsity(run.out)
    assert described
    groups = torch.cat([after[name].view(-1, 4).count_nonzero(1) for name in described.tensors])
    filled = sum(int(((before[name] == 0) & (after[name] != 0)).sum()) for name in described.tensors)
    print(
        f"recovered {recovered:.1%}; {filled} zeros filled, {int((groups > 2).sum())} of {len(groups)} groups over 2:4"
    )
    assert recovered >= 0.5
    assert filled == 0
    assert int(groups.amax()) == 2


@pytest.mark.parametrize("scope", ["full", "lora"])
def test_two_processes_keep_the_mask_as_one_does(
    scope: str, tiny_model: MakeModel, training_stage: MakeStage, tmp_path: Path
) -> None:
    source = tiny_model("Qwen3Moe")
    sparse = run_of(source, source, tmp_path / "sparse")
    Sparsify(method="magnitude", pattern="2:4").apply(sparse)
    settings = {"steps": 4, "learning_rate": 0.03, "schedule": "constant", "warmup": 0, "scope": scope, "batch": 4}
    technique = Finetune.model_validate({**settings, "sequence_length": 32, "validation": {"samples": 2, "every": 1}})
    stage = training_stage(sparse.out, technique, "")
    alone, together = stage.run("alone"), stage.run("together", processes=2)
    worst = max(abs(a - b) for a, b in zip(alone.losses, together.losses, strict=True))
    before, one, other = (
        load_file(folder / "model.safetensors") for folder in (sparse.out, alone.files, together.files)
    )
    found = load_sparsity(together.files)
    assert found
    filled = sum(int(((before[name] == 0) & (other[name] != 0)).sum()) for name in found.tensors)
    moved = sum(not torch.equal(before[name], other[name]) for name in found.tensors)
    print(f"\n{scope}: largest difference of a loss {worst:.1e}; {filled} zeros filled, {moved} tensors moved")
    assert together.results["training"]["best_step"] == alone.results["training"]["best_step"] > 0
    assert worst < 1e-4
    assert filled == 0
    assert moved > 0.5 * len(found.tensors)
    assert all(torch.allclose(one[name].float(), other[name].float(), atol=2e-2) for name in one)
