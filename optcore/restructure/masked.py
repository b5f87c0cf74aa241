"""Proof that a narrower checkpoint is the old model with parts of it masked, on a few tokens in float32."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from optcore.errors import RecipeError
from optcore.streaming.decoder import Decoder
from optcore.streaming.groups import probe_state

if TYPE_CHECKING:
    from optcore.restructure.slices import Slices
    from optcore.restructure.width_plan import Plan
    from optcore.run import Run

_CLOSE = 1e-5


@torch.no_grad()
def check_masked(run: "Run", slices: "Slices", plan: "Plan") -> None:
    """Raises `RecipeError` unless the logits of `run.out` are those of `run.checkpoint` with what went masked."""
    expected = _masked_logits(Decoder(run.checkpoint, dtype=torch.float32), slices, plan)
    narrower = Decoder(run.out, dtype=torch.float32)
    state = probe_state(narrower)
    for index in range(len(narrower)):
        with narrower.layer(index) as layer:
            state = narrower.forward(index, layer, state)
    found = narrower.logits(state)
    if not (found - expected).norm() <= _CLOSE * expected.norm():
        cut = ", ".join(f"{key} {after}" for key, (_, after) in plan.sizes.items())
        raise RecipeError(
            f"a {type(narrower.model).__name__} with {cut} is another model than this one without those parts: it "
            "computes more from these sizes than shapes",
            remedy="leave out the axis that does it (`width` is `ffn` and `hidden`), or prune `depth`",
            field="/chain",
        )


def _masked_logits(decoder: Decoder, slices: "Slices", plan: "Plan") -> torch.Tensor:
    inside = f"{decoder.layer_name(0).removesuffix('0')}"
    for name, parameter in decoder.model.named_parameters(remove_duplicate=False):
        if not name.startswith(inside):
            slices.mask(name, parameter.data)
    state = probe_state(decoder)
    for index in range(len(decoder)):
        own = f"{decoder.layer_name(index)}."
        with decoder.layer(index) as layer, _over_kept(decoder, plan, [p for p in plan.norms if p.startswith(own)]):
            for path, parameter in layer.named_parameters():
                slices.mask(f"{own}{path}", parameter.data)
            state = decoder.forward(index, layer, state)
    with _over_kept(decoder, plan, [path for path in plan.norms if not path.startswith(inside)]):
        return decoder.logits(state)


@contextmanager
def _over_kept(decoder: Decoder, plan: "Plan", norms: Sequence[str]) -> Iterator[None]:
    """Norms that take the mean over as many channels as will stay.

    RMS norms divide by sqrt(sum x^2 / H + eps). With x sqrt(H / H') given and the output divided by the same, that is
    sqrt(sum x^2 / H' + eps): what H' channels give when all others are zero.
    """
    ratio = next((unit.parts / unit.keeps for unit in plan.units if unit.axis == "hidden"), 1.0) ** 0.5

    def given(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0] * ratio, *args[1:])

    modules = [decoder.model.get_submodule(path) for path in norms]
    handles = [module.register_forward_pre_hook(given) for module in modules]
    handles += [module.register_forward_hook(lambda _, __, out: out / ratio) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
