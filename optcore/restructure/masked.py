"""Proof that a narrower checkpoint is the old model with parts of it masked, on a few tokens in float32."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from optcore.restructure.probe import check_same, probe_logits
from optcore.streaming.decoder import Decoder

if TYPE_CHECKING:
    from optcore.restructure.slices import Slices
    from optcore.restructure.width_plan import Plan
    from optcore.run import Run


@torch.no_grad()
def check_masked(run: "Run", slices: "Slices", plan: "Plan") -> None:
    """Raises `RecipeError` unless the logits of `run.out` are those of `run.checkpoint` with what went masked."""
    narrower = Decoder(run.out, dtype=torch.float32)
    cut = ", ".join(f"{key} {after}" for key, (_, after) in plan.sizes.items())
    check_same(
        probe_logits(narrower),
        _masked_logits(Decoder(run.checkpoint, dtype=torch.float32), slices, plan),
        f"a {type(narrower.model).__name__} with {cut} is another model than this one without those parts: it computes "
        "more from these sizes than shapes",
        "leave out the axis that does it (`width` is `ffn` and `hidden`), or prune `depth`",
    )


def _masked_logits(decoder: Decoder, slices: "Slices", plan: "Plan") -> torch.Tensor:
    inside = f"{decoder.layer_name(0).removesuffix('0')}"
    for name, parameter in decoder.model.named_parameters(remove_duplicate=False):
        if not name.startswith(inside):
            slices.mask(name, parameter.data)

    @contextmanager
    def masked(index: int, layer: nn.Module) -> Iterator[None]:
        own = f"{decoder.layer_name(index)}."
        for path, parameter in layer.named_parameters():
            slices.mask(f"{own}{path}", parameter.data)
        with _over_kept(decoder, plan, [path for path in plan.norms if path.startswith(own)]):
            yield

    with _over_kept(decoder, plan, [path for path in plan.norms if not path.startswith(inside)]):
        return probe_logits(decoder, around=masked)


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
