"""The weights of a checkpoint, quantized or not, under one set of names: what a file is written from."""

from functools import cached_property
from pathlib import Path

import torch

from optcore.algorithms.scales import Scales
from optcore.calibration.digest import weight_digest
from optcore.errors import ExportMismatch
from optcore.gguf.fused import Slice, slices
from optcore.quantization import load_quantization
from optcore.sizes import read_header
from optcore.streaming.quantized import QuantizedCheckpoint
from optcore.streaming.reader import TensorReader


class Weights:
    """Tensors by their name in the model, such as `model.layers.0.mlp.up_proj.weight`, whether in codes or not."""

    def __init__(self, folder: Path) -> None:
        description = load_quantization(folder)
        self._state = QuantizedCheckpoint(folder, description) if description else None
        self._dense = None if description else TensorReader(folder)
        self._linears = description.matrices if description else {}
        self._headers: dict[str, dict[str, object]] = {}
        for file in description.files if description else ():
            self._headers |= read_header(folder / file) if (folder / file).exists() else {}

    @cached_property
    def names(self) -> list[str]:
        """Every weight, bias and vector, in the order of the files; experts one by one."""
        return [name for stored in self._stored for name in (slices(stored, self._shape(stored)) or (stored,))]

    def scheme(self, name: str) -> str | None:
        """The format of a tensor's codes; None for one that was left alone."""
        linear = self._linears.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        return linear.scheme if linear else None

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the values, not of what stores them; the headers tell."""
        return part.shape if (part := self._slices.get(name)) else self._shape(name)

    def plain(self, name: str) -> torch.Tensor:
        """A tensor that was left alone, in its own type."""
        state = self._dense if self._dense is not None else self._quantized
        if part := self._slices.get(name):
            return state.entry(part.stored, part.number)[part.rows]
        return state.tensor(name)

    def codes(self, name: str) -> tuple[torch.Tensor, Scales]:
        """Codes [N, K] and scales of a quantized weight."""
        return self._quantized.codes(name.removesuffix(".weight"))

    def value(self, name: str) -> torch.Tensor:
        """What a tensor stands for: float32 of codes, else its own type.

        Raises `ExportMismatch` where codes are not those of the weight that the pass simulated.
        """
        module = name.removesuffix(".weight")
        if self.scheme(name) is None:
            return self.plain(name)
        value = self._quantized.weight(module)
        if weight_digest(value) != self._linears[module].digest:
            raise ExportMismatch(f"{module} in the checkpoint is not the weight that was simulated")
        return value

    @cached_property
    def _stored(self) -> list[str]:
        """The same, but all experts of a layer as one where the checkpoint has them so."""
        if self._dense is not None:
            return self._dense.names
        return list(dict.fromkeys(self._whole(name) for name in self._headers))

    @cached_property
    def _slices(self) -> dict[str, Slice]:
        found = (slices(stored, self._shape(stored)) for stored in self._stored)
        return {name: part for parts in found for name, part in parts.items()}

    def _shape(self, stored: str) -> tuple[int, ...]:
        if self._dense is not None:
            return self._dense.shape(stored)
        if self.scheme(stored) is None:
            return self._stored_shape(stored)
        return self._shape_of_codes(stored.removesuffix(".weight"))

    @property
    def _quantized(self) -> QuantizedCheckpoint:
        assert self._state is not None
        return self._state

    def _whole(self, stored: str) -> str:
        """The model's name for one of the tensors that a weight is stored in."""
        module, _, suffix = stored.rpartition(".")
        return f"{module}.weight" if module in self._linears and suffix != "bias" else stored

    def _stored_shape(self, name: str) -> tuple[int, ...]:
        lengths = self._headers[name]["shape"]
        assert isinstance(lengths, list)
        return tuple(lengths)

    def _shape_of_codes(self, module: str) -> tuple[int, ...]:
        if f"{module}.weight_shape" in self._headers:
            return tuple(self._quantized.tensor(f"{module}.weight_shape").tolist())
        rows, groups = self._stored_shape(f"{module}.weight_scale")
        return rows, groups * (self._quantized.scheme(module).weights.group_size or 1)
