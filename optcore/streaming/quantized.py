"""Reads a quantized checkpoint: codes, scales, the weights they stand for, and everything that was left alone."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from optcore.algorithms.codes import decode
from optcore.algorithms.packing import unpack
from optcore.algorithms.scales import Scales
from optcore.errors import BadCheckpoint
from optcore.quantization import Quantization, load_quantization
from optcore.schemes import PRESETS, Scheme
from optcore.sizes import read_header

# What a linear layer's input scale may be called, by format.
INPUT_SCALES = ("input_global_scale", "input_scale")
# What the tensors of a quantized KV cache are called. An attention has others of its own, such as gpt-oss's sinks.
KV_TENSORS = frozenset(f"{kind}_{what}" for kind in "kv" for what in ("scale", "global_scale", "bias"))


class QuantizedCheckpoint:
    """The files that a quantization pass left; a tensor is read when it is asked for, and no file stays open."""

    def __init__(self, folder: Path, description: Quantization | None = None) -> None:
        description = description or load_quantization(folder)
        if description is None:
            raise BadCheckpoint(f"{folder.name} is not a quantized checkpoint")
        self.folder = folder
        self.description: Quantization = description
        there = [file for file in description.files if (folder / file).exists()]  # a pass reads back its first layers
        self._file_of = {name: file for file in there for name in read_header(folder / file)}
        self._suffixes: dict[str, list[str]] = {}
        for name in self._file_of:
            module, _, suffix = name.rpartition(".")
            self._suffixes.setdefault(module, []).append(suffix)

    @property
    def names(self) -> list[str]:
        """Every stored tensor, in the order of the model."""
        return list(self._file_of)

    def tensor(self, name: str) -> torch.Tensor:
        """One stored tensor, as it is stored."""
        with safe_open(self.folder / self._file_of[name], framework="pt") as file:
            return file.get_tensor(name)

    def entry(self, name: str, number: int) -> torch.Tensor:
        """`tensor(name)[number]`; nothing else is read."""
        with safe_open(self.folder / self._file_of[name], framework="pt") as file:
            found: torch.Tensor = file.get_slice(name)[number]
            return found

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a stored tensor, which is not read."""
        with safe_open(self.folder / self._file_of[name], framework="pt") as file:
            return tuple(file.get_slice(name).get_shape())

    def scheme(self, name: str) -> Scheme:
        """The number format of a quantized linear layer or table."""
        return PRESETS[self.description.matrices[name].scheme]

    def codes(self, name: str) -> tuple[torch.Tensor, Scales]:
        """Codes [N, K] and scales of a quantized weight, of a linear layer or a table."""
        return unpack(self.stored(name), self.scheme(name).weights)

    def stored(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of a quantized weight by suffix, as `packing.pack` gave them."""
        kept = [suffix for suffix in self._suffixes[name] if suffix.startswith("weight")]
        return {suffix: self.tensor(f"{name}.{suffix}") for suffix in kept}

    def weight(self, name: str) -> torch.Tensor:
        """What a quantized weight stands for, float32 [N, K]."""
        codes, scales = self.codes(name)
        return decode(codes, scales, self.scheme(name).weights)

    def input_scale(self, name: str) -> torch.Tensor | None:
        """The calibrated scale of a linear layer's input, where its format has one."""
        found = next((suffix for suffix in INPUT_SCALES if suffix in self._suffixes[name]), None)
        return self.tensor(f"{name}.{found}") if found else None

    def kv_tensors(self, attention: str) -> dict[str, torch.Tensor]:
        """Scales and biases of an attention's keys and values, such as `k_scale` and `v_scale`."""
        suffixes = self._suffixes.get(attention, ())
        return {s: self.tensor(f"{attention}.{s}") for s in suffixes if s in KV_TENSORS}

    def plain_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor that is not quantized, in its final form; scales of any kind left out."""
        matrices, attentions = self.description.matrices, set(self.description.attentions)
        for name in self._file_of:
            module, _, suffix = name.rpartition(".")
            is_scale = suffix in KV_TENSORS if module in attentions else module in matrices and suffix != "bias"
            if not is_scale:
                yield name, self.tensor(name)
