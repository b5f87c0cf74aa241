"""What the quantization of a layer takes, reckoned before the first one: a GPU too small is told at once.

Legend: N outputs and K inputs of a linear layer, H values of a token's hidden state.
"""

from typing import NamedTuple

import torch
from torch import nn

from optcore.errors import OutOfMemory
from optcore.streaming.decoder import Decoder
from optcore.streaming.free_memory import check_room, gpu_bytes
from optcore.streaming.groups import linears
from optcore.streaming.hidden import BATCH_tokens

_REMEDY = (
    "use a larger machine, or what takes no Gram matrices: `rounding: nearest`, `smoothing: none`, `scale_search: mse`"
)
_FLOAT_bytes = 4
_GIB = 2**30


class LayerNeed(NamedTuple):
    """Bytes that a layer takes at least."""

    layer: str
    block: int
    """Its parameters, in the type that is computed in."""
    grams: int
    """A float32 matrix [K, K] for each input. Siblings with one K are taken to share it, so there may be more."""
    working: int
    """The float32 copy of its largest weight [N, K] that is rounded."""
    batch: int
    """A batch's hidden states in front of the layer and behind it, [tokens, H] each."""

    @property
    def total(self) -> int:
        """All at once."""
        return self.block + self.grams + self.working + self.batch

    def __str__(self) -> str:
        parts = {"the block": self.block, "Gram matrices": self.grams, "a working weight": self.working}
        said = ", ".join(f"{name} {size / _GIB:.1f}" for name, size in {**parts, "a batch": self.batch}.items())
        return f"{said} GiB"


def largest_need(decoder: Decoder, *, gram: bool) -> LayerNeed:
    """That of the layer which takes most; `gram` where inputs are measured by Gram matrices."""
    needs = (_need(decoder, index, layer, gram=gram) for index, layer in enumerate(decoder.layers))
    return max(needs, key=lambda need: need.total)


def check_memory(decoder: Decoder, *, gram: bool) -> None:
    """Raise `OutOfMemory` where the GPU that is computed on cannot hold the largest layer."""
    if decoder.device.type == "cuda":
        need = largest_need(decoder, gram=gram)
        check_room(f"quantizing {need.layer}", need.total, gpu_bytes(decoder.device), str(need), _REMEDY)


def ran_out(decoder: Decoder, index: int, *, gram: bool) -> OutOfMemory:
    """What to say when a layer did not fit after all."""
    need = _need(decoder, index, decoder.layers[index], gram=gram)
    there = ""
    if decoder.device.type == "cuda":
        free, held = gpu_bytes(decoder.device), torch.cuda.memory_allocated(decoder.device)
        there = f"; {free / _GIB:.1f} GiB are free, and {held / _GIB:.1f} in use by tensors"
    said = f"quantizing {need.layer} ran out of memory: it takes at least {need.total / _GIB:.1f} GiB ({need}){there}"
    return OutOfMemory(said, remedy=_REMEDY, field="/chain")


def _need(decoder: Decoder, index: int, layer: nn.Module, *, gram: bool) -> LayerNeed:
    found = linears(layer)
    inputs = {(path.rpartition(".")[0], module.in_features) for path, module in found.items()}
    hidden = decoder.model.config.get_text_config().hidden_size
    return LayerNeed(
        layer=decoder.layer_name(index),
        block=decoder.dtype.itemsize * sum(parameter.numel() for parameter in layer.parameters()),
        grams=_FLOAT_bytes * sum(width**2 for _, width in inputs) if gram else 0,
        working=_FLOAT_bytes * max((module.weight.numel() for module in found.values()), default=0),
        batch=2 * decoder.dtype.itemsize * BATCH_tokens * hidden,
    )
