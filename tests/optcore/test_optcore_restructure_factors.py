"""Factors that train: their gradients in closed form, and a checkpoint of low rank before and after."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import run_of
from fixtures.tiny_models import MakeModel
from fixtures.training import killed_and_gone_on, logits_of, training_run
from fixtures.training_stages import AsWritten
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from optcore.factored import DESCRIPTION, FACTORS, load_factored
from optcore.plan import check
from optcore.recipe import recipe_from
from optcore.streaming.decoder import Decoder
from optcore.techniques import Distill, Finetune, Heal, LowRank
from optcore.training.factors import FactoredLinear

torch.set_num_threads(1)
SIDES = ("left", "right")
QUICK: dict[str, Any] = {
    "batch": 2,
    "sequence_length": 16,
    "validation": {"samples": 2},
    "warmup": 0,
    "steps": 2,
    "learning_rate": 0.01,
    "data": {"kind": "random", "windows": 8},
}


def _factored(source: Path, folder: Path) -> Path:
    run = run_of(source, source, folder / "factored")
    LowRank.model_validate({"method": "svd", "keep": 0.5}).apply(run)
    return run.out


def test_gradients_are_those_of_a_product() -> None:
    """dU = dW V^T and dV = U^T dW, with dW from the plain layer."""
    generator = torch.Generator().manual_seed(1)
    left_NR, right_RK = torch.randn(6, 2, generator=generator), torch.randn(2, 5, generator=generator)
    plain, x = nn.Linear(5, 6), torch.randn(7, 5, generator=generator)
    factored = FactoredLinear(plain, left_NR, right_RK).requires_grad_()
    plain.weight = nn.Parameter(left_NR @ right_RK)
    for module in (plain, factored):
        module(x).square().sum().backward()
    assert plain.weight.grad is not None
    assert torch.allclose(factored.left.grad, plain.weight.grad @ right_RK.T, rtol=1e-4, atol=1e-4)
    assert torch.allclose(factored.right.grad, left_NR.T @ plain.weight.grad, rtol=1e-4, atol=1e-4)
    assert torch.allclose(factored(x), plain(x), atol=1e-5)
    assert {name for name, _ in factored.named_parameters()} == {"left", "right", "bias"}


@pytest.mark.parametrize("family", ["Qwen2", "GptOss"])
@pytest.mark.usefixtures("keeps_the_last")
def test_what_is_written_is_the_product_of_the_trained_factors(
    family: str, tiny_model: MakeModel, tmp_path: Path, as_written: AsWritten
) -> None:
    """Experts that are all in one tensor too; bit for bit, and the engine of others loads it."""
    folder = _factored(tiny_model(family), tmp_path)
    tokens_BT = torch.arange(3, 19)[None]
    said = as_written(tokens_BT)
    technique = Finetune.model_validate(QUICK)
    run = training_run(technique, folder, folder, tmp_path)
    technique.apply(run)
    ((_, trained),) = said
    assert (run.out / DESCRIPTION).read_text() == (folder / DESCRIPTION).read_text()
    found = load_factored(run.out)
    assert found
    before, after = load_file(folder / FACTORS), load_file(run.out / FACTORS)
    assert after.keys() == before.keys() == {f"{n.removesuffix('.weight')}.{s}" for n in found.tensors for s in SIDES}
    assert all(after[name].dtype == before[name].dtype for name in before)
    assert sum(not torch.equal(after[name], before[name]) for name in before) > 0.5 * len(before)
    decoder = Decoder(run.out)
    own = {stored: parameter for parameter, stored in decoder.names.stored_name.items()}
    for name, described in found.tensors.items():
        module = name.removesuffix(".weight")
        product_NK = after[f"{module}.left"].double() @ after[f"{module}.right"].double()
        source = decoder.names.sources[own[name]]
        stored_NK = source.of(decoder.reader.tensor(source.stored))
        assert torch.equal(product_NK.to(stored_NK.dtype), stored_NK)
        assert torch.linalg.matrix_rank(product_NK) <= described.rank < min(described.shape)
    logits, moved = logits_of(run.out, tokens_BT), logits_of(folder, tokens_BT)
    assert (logits - trained).norm() < 0.05 * (moved - trained).norm()  # files hold bfloat16
    _, info = AutoModelForCausalLM.from_pretrained(run.out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_a_killed_run_goes_on_with_the_same_factors(tiny_model: MakeModel, tmp_path: Path) -> None:
    source = tiny_model("Llama")
    folder = _factored(source, tmp_path)
    technique = Distill.model_validate({**QUICK, "steps": 4, "learning_rate": 1e-3, "save_every": 2})
    runs = killed_and_gone_on(technique, source, folder, tmp_path, 3)
    whole, killed = ([(run.out / file).read_bytes() for file in ("model.safetensors", FACTORS)] for run in runs)
    assert whole == killed
    assert whole[1] != (folder / FACTORS).read_bytes()


def test_healing_norms_leaves_factors_as_they_are(tiny_model: MakeModel, tmp_path: Path) -> None:
    source = tiny_model("Llama")
    folder = _factored(source, tmp_path)
    technique = Heal.model_validate({**QUICK, "adapters": False})
    run = training_run(technique, source, folder, tmp_path)
    technique.apply(run)
    before, after = load_file(folder / FACTORS), load_file(run.out / FACTORS)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_training_may_follow_low_rank() -> None:
    after = [{"technique": "finetune"}, {"technique": "distill"}, {"technique": "heal", "adapters": False}]
    chain = [{"technique": "low_rank"}, *after]
    check(recipe_from({"model": {"id": "org/model"}, "chain": chain, "target": {"format": "dense"}}))
