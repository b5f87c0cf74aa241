"""Squared output gradients, streamed layer by layer, are those of the whole model in memory."""

from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
import torch
from fixtures.tiny_models import MakeModel
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from optcore.calibration.gradients import BackwardPass, OutputGradient, logit_gradient
from optcore.streaming.decoder import Decoder

WINDOWS, LENGTH, SEED = 3, 12, 5


def tokens_ST() -> torch.Tensor:
    return torch.randint(2048, (WINDOWS, LENGTH), generator=torch.Generator().manual_seed(1))


def streamed(decoder: Decoder, scratch: Path, **more: int) -> dict[str, tuple[int, torch.Tensor | None]]:
    """Tokens and mean squares by module name, from the last layer to the first."""
    passed, found = BackwardPass(decoder, tokens_ST(), scratch, SEED, **more), {}
    for index in reversed(range(len(decoder))):
        with decoder.layer(index) as layer:
            for path, gradient in passed.step(index, layer).items():
                found[f"{decoder.layer_name(index)}.{path}"] = gradient.tokens, gradient.mean_square()
    return found


def whole(model: PreTrainedModel) -> dict[str, tuple[int, torch.Tensor]]:
    """The same by plain autograd through the whole model."""
    seen: dict[str, torch.Tensor] = {}

    def watch(module: nn.Module, given: object, out: torch.Tensor, name: str) -> None:
        out.register_hook(partial(seen.__setitem__, name))

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(partial(watch, name=name))
    embedded = model.get_input_embeddings()(tokens_ST()).detach().requires_grad_()
    logits = model(inputs_embeds=embedded, use_cache=False).logits
    logits.backward(logit_gradient(logits, torch.Generator().manual_seed(SEED)))
    return {
        name: (gradient[..., 0].numel(), gradient.flatten(0, -2).square().mean(0)) for name, gradient in seen.items()
    }


@pytest.mark.parametrize("family", ["Llama", "Qwen3Moe", "Gemma2"])
def test_equal_to_transformers(family: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    folder = tiny_model(family)
    found = streamed(Decoder(folder, torch.device("cpu")), tmp_path)
    expected = whole(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    both = found.keys() & expected.keys()
    assert len(both) >= 2 * 4
    for name in both:
        assert found[name][0] == expected[name][0] == WINDOWS * LENGTH
        torch.testing.assert_close(found[name][1], expected[name][1], rtol=1e-3, atol=1e-9)


def test_experts_equal_those_of_the_whole_model(tiny_model: MakeModel, tmp_path: Path) -> None:
    decoder = Decoder(tiny_model("Qwen3Moe"), torch.device("cpu"))
    found = streamed(decoder, tmp_path)
    with ExitStack() as all_layers:
        for index in range(len(decoder)):
            all_layers.enter_context(decoder.layer(index))
        expected = whole(decoder.model)
    experts = [name for name in found if ".experts." in name]
    assert len(experts) == 2 * 4 * 3
    for name in experts:
        assert found[name][0] == (expected[name][0] if name in expected else 0)
        torch.testing.assert_close(
            found[name][1], expected[name][1] if name in expected else None, rtol=1e-3, atol=1e-9
        )
    reached = [found[name][0] for name in experts if name.endswith("down_proj")]
    assert sum(reached) == 2 * WINDOWS * LENGTH * 2  # layers, tokens, experts a token


def test_states_that_do_not_fit_go_to_the_disk(tiny_model: MakeModel, tmp_path: Path) -> None:
    in_memory = streamed(Decoder(tiny_model("Llama"), torch.device("cpu")), tmp_path / "unused")
    spilled = streamed(Decoder(tiny_model("Llama"), torch.device("cpu")), tmp_path / "used", in_memory_bytes=1024)
    assert not (tmp_path / "unused").exists()
    assert (tmp_path / "used").exists()
    for name, (_, gradient) in in_memory.items():
        assert torch.equal(gradient, spilled[name][1])


def test_the_random_gradient_of_logits_has_the_covariance_of_drawn_labels() -> None:
    logits = torch.tensor([2.0, 0.0, -1.0, 0.5])
    p = logits.softmax(-1)
    drawn = logit_gradient(logits.expand(200_000, 4), torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(0), torch.zeros(4), atol=5e-3, rtol=0)
    torch.testing.assert_close(drawn.T @ drawn / len(drawn), p.diag() - p[:, None] * p, atol=5e-3, rtol=0)


def test_the_coherent_square_is_what_a_white_change_of_the_weight_moves() -> None:
    """Half the mean of (sum over tokens of g . dW x)^2, by drawing dW, against the closed form."""
    torch.manual_seed(0)
    g_STN, x_STK = torch.randn(5, 7, 3), torch.randn(5, 7, 4) + 1
    found = OutputGradient()
    for start in (0, 3):  # batches
        found.add(g_STN[start : start + 3], x_STK[start : start + 3])
    draws_DNK = torch.randn(40_000, 3, 4)
    moved_SDN = torch.einsum("stn,dnk,stk->sdn", g_STN, draws_DNK, x_STK)
    gram_KK = torch.einsum("stk,stj->kj", x_STK, x_STK) / 35
    torch.testing.assert_close(
        found.coherent_square() * gram_KK.trace(), moved_SDN.square().mean(1).sum(0) / 35, rtol=0.03, atol=0
    )
    assert found.tokens == 35
    torch.testing.assert_close(found.mean_square(), g_STN.square().mean((0, 1)))
