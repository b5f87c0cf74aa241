"""Zeros of a sparse checkpoint in what a stage made of it: none may have gone, and those that are there are counted."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from optcore.errors import FormLost
from optcore.sparsity import QUANTIZED, SparseTensor, Sparsity, load_sparsity
from optcore.streaming.quantized import QuantizedCheckpoint
from optcore.streaming.reader import TensorReader

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.streaming.decoder import Decoder

Read = Callable[[str], torch.Tensor]


def carry_zeros(run: "Run") -> None:
    """Where `run.checkpoint` is sparse, describe the zeros of `run.out`, a dense checkpoint of the same tensors.

    Reads both again, tensor by tensor. Raises `FormLost` where a zero is none any more.
    """
    if found := load_sparsity(run.checkpoint):
        before, after = TensorReader(run.checkpoint), TensorReader(run.out)
        _noted(run, _recounted(found, before.tensor, after.tensor), run.out)


def carry_zeros_to_codes(run: "Run", decoder: "Decoder", out: Path) -> None:
    """Where `run.checkpoint` is sparse, describe the zeros that the codes in `out` stand for, if all are there still.

    A search may have filled them, where nobody asked for them to be kept: a model that came sparse from its source.
    """
    found = load_sparsity(run.checkpoint)
    if found is None:
        return
    decoded = _Decoded(decoder, QuantizedCheckpoint(out))
    try:
        counted = _recounted(found, decoder.reader.tensor, decoded.tensor)
    except FormLost as lost:
        run.notice(f"the quantized model is not sparse any more: {lost.message}")
        return
    _noted(run, counted.model_copy(update={"accelerated_by": QUANTIZED}), out)


class _Decoded:
    """A quantized checkpoint's weights under the dense one's names."""

    def __init__(self, decoder: "Decoder", quantized: QuantizedCheckpoint) -> None:
        self._reader, self._names, self._quantized = decoder.reader, decoder.names, quantized

    def tensor(self, stored: str) -> torch.Tensor:
        """float32; one that holds all experts is made of their linears."""
        whole, matrices = self._reader.tensor(stored).float(), self._quantized.description.matrices
        for parameter, source in self._names.sources.items():
            module = self._names.stored_name[parameter].removesuffix(".weight")
            if source.stored == stored and module in matrices:
                source.of(whole).copy_(self._quantized.weight(module))
        return whole


def _recounted(found: Sparsity, before: Read, after: Read) -> Sparsity:
    tensors = {}
    for name, described in found.tensors.items():
        old, new = before(name), after(name)
        filled = int(((old == 0) & (new != 0)).sum())
        if filled:
            raise FormLost(f"{filled} weights of {name} were zero, and are not any more")
        tensors[name] = SparseTensor(pattern=described.pattern, nonzero=int(new.count_nonzero()), total=new.numel())
    return found.model_copy(update={"tensors": tensors})


def _noted(run: "Run", found: Sparsity, out: Path) -> None:
    found.save(out)
    run.results["sparsity"] = {"share": found.share, "accelerated_by": found.accelerated_by}
