"""Proof that a checkpoint computes what it must: logits of a few tokens, held against each other in float32."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from optcore.errors import RecipeError
from optcore.streaming.decoder import Decoder
from optcore.streaming.groups import probe_state

Around = Callable[[int, nn.Module], AbstractContextManager[None]]
"""What surrounds a layer, given its number and itself, while it computes."""

_CLOSE = 1e-5


@torch.no_grad()
def probe_logits(
    decoder: Decoder, layers: Iterable[tuple[Decoder, int]] | None = None, around: Around = lambda *_: nullcontext()
) -> torch.Tensor:
    """Logits of a few tokens, [1, T, V], or of a classifier's labels, [1, labels].

    `layers` are those that compute, of this model or another, by their number in it; all of this one by default.
    """
    state = probe_state(decoder)
    for model, index in ((decoder, index) for index in range(len(decoder))) if layers is None else layers:
        with model.layer(index) as layer, around(index, layer):
            state = model.forward(index, layer, state)
    return decoder.logits(state)


def are_same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether logits differ by no more than rounding."""
    return bool((found - expected).norm() <= _CLOSE * expected.norm())


def check_same(found: torch.Tensor, expected: torch.Tensor, said: str, remedy: str) -> None:
    """Refuse to go on where logits differ by more than rounding."""
    if not are_same(found, expected):
        raise RecipeError(said, remedy=remedy, field="/chain")
