"""Lays a quantized checkpoint out anew, tensor by tensor, and holds what was written against what was simulated."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from optcore.calibration.digest import weight_digest
from optcore.errors import ExportMismatch
from optcore.export.raw_reader import Array, RawFiles
from optcore.links import link_companions, link_forms
from optcore.streaming.writer import TensorWriter

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.streaming.quantized import QuantizedCheckpoint

Config = dict[str, Any]


class Bound(NamedTuple):
    """How far a decoded weight w' may lie from the simulated w: |w' - w| <= relative * |w| + absolute."""

    relative: float = 0.0
    absolute: float = 0.0


EXACT = Bound()


class Layout(ABC):
    """How one target stores the tensors of a quantized checkpoint, and how they are read back."""

    def __init__(self, state: "QuantizedCheckpoint") -> None:
        self.state = state

    @abstractmethod
    def linear(self, name: str) -> Mapping[str, torch.Tensor]:
        """The stored tensors of a quantized linear layer (or table) by suffix, its bias aside."""

    @abstractmethod
    def decode(self, files: RawFiles, name: str) -> Array:
        """A quantized linear layer's weight from the written bytes alone, float32 [N, K]."""

    @abstractmethod
    def config(self, config: Config) -> Config:
        """The model's `config.json` with what engines need to know of the layout."""

    def bound(self, name: str) -> Bound:
        """How far a layer's decoded weight may be from the simulated one."""
        return EXACT

    def attention(self, name: str) -> Mapping[str, torch.Tensor]:
        """The stored tensors of a quantized KV cache by their whole name."""
        return {}

    def companions(self) -> Mapping[str, Config]:
        """JSON files besides `config.json`, by name."""
        return {}


def write_layout(run: "Run", layout: Layout) -> None:
    """Write the target's files to `run.out`. Raises `ExportMismatch` when one does not decode to what was simulated."""
    written = _write_tensors(run, layout)
    link_companions(run.checkpoint, run.out)
    link_forms(run.checkpoint, run.out)
    config = json.loads((run.checkpoint / "config.json").read_text())
    for name, content in {"config.json": layout.config(config), **layout.companions()}.items():
        (run.out / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    _verify(run, layout, written)


def _write_tensors(run: "Run", layout: Layout) -> set[str]:
    """Write every tensor and return their names; one part of the files is in memory at a time."""
    writer, names, description = TensorWriter(run.out), set(), layout.state.description

    def add(name: str, tensor: torch.Tensor) -> None:
        names.add(name)
        writer.add(name, tensor)

    for count, module in enumerate(description.matrices):
        for suffix, tensor in layout.linear(module).items():
            add(f"{module}.{suffix}", tensor)
        run.progress("packing", count + 1, len(description.matrices))
    for attention in description.attentions:
        for name, tensor in layout.attention(attention).items():
            add(name, tensor)
    for name, tensor in layout.state.plain_tensors():
        add(name, tensor)
    writer.close()
    return names


def _verify(run: "Run", layout: Layout, expected: set[str]) -> None:
    files, matrices = RawFiles(run.out), layout.state.description.matrices
    if files.names != expected:
        raise ExportMismatch(f"the files hold other tensors: {', '.join(sorted(files.names ^ expected)[:5])}")
    for name, tensor in layout.state.plain_tensors():
        if files.bits(name).tobytes() != _octets(tensor):
            raise ExportMismatch(f"{name} was not written as it is")
    for count, (name, linear) in enumerate(matrices.items()):
        simulated = layout.state.weight(name)
        if weight_digest(simulated) != linear.digest:  # what we decode is what the pass computed with
            raise ExportMismatch(f"{name} in the checkpoint is not the weight that was simulated")
        compare(name, layout.decode(files, name), simulated, layout.bound(name))
        run.progress("verifying", count + 1, len(matrices))


def compare(name: str, decoded: Array, simulated: torch.Tensor, bound: Bound) -> None:
    """Raises `ExportMismatch` where the decoded weight leaves the bound around the simulated one (float32 [N, K])."""
    expected = simulated.cpu().numpy()
    if decoded.shape != expected.shape:
        raise ExportMismatch(f"{name} decodes to the shape {decoded.shape}, not {expected.shape}")
    if bound == EXACT:
        is_within = decoded == expected
    else:
        allowed = np.abs(expected.astype(np.float64)) * bound.relative + bound.absolute
        is_within = np.abs(decoded.astype(np.float64) - expected) <= allowed
    if not is_within.all():
        row, column = np.argwhere(~is_within)[0]
        raise ExportMismatch(
            f"{name} decodes to {decoded[row, column]!r} at [{row}, {column}], not to {expected[row, column]!r}; "
            f"{(~is_within).sum()} of {is_within.size} values differ"
        )


def _octets(tensor: torch.Tensor) -> bytes:
    octets: bytes = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return octets
