"""Norms over the hidden state, which divide by the root mean square of channels that are about to become fewer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from optcore.errors import RecipeError
from optcore.streaming.structure import norm_offset

if TYPE_CHECKING:
    from optcore.streaming.decoder import Decoder


def check_norms(decoder: "Decoder", paths: Sequence[str]) -> None:
    """Refuse a model whose norms do more than divide by a root mean square; its first layer and what is in none."""
    inside = f"{decoder.layer_name(0)}."
    layers = decoder.layer_name(0).removesuffix("0")
    with decoder.layer(0):
        for path in paths:
            if path.startswith(inside) or not path.startswith(layers):
                gain_offset(path, decoder.model.get_submodule(path), decoder.device)


@torch.no_grad()
def gain_offset(path: str, norm: nn.Module, device: torch.device) -> float:
    """What a norm adds to its weight before it multiplies (1 in Gemma), found by trying.

    Raises `RecipeError` where channels of zeros come out as anything else, which is how a LayerNorm shows that it
    takes the mean away: with fewer channels it would be another function.
    """
    size = norm.weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    x_1TH = torch.randn(1, 2, size, generator=generator).to(device)
    x_1TH[..., ::2] = 0
    offset = norm_offset(norm, lambda: norm(x_1TH))
    if offset is None or bool(norm(x_1TH)[..., ::2].any()):
        raise RecipeError(
            f"`hidden` cannot be cut: {path} is no RMS norm, and means over fewer channels are others",
            remedy="leave `hidden` out (`width` has it in it), or prune `depth`",
            field="/chain",
        )
    return offset
