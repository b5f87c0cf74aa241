"""Reads a GGUF file back with gguf's own decoders, and holds it against what was simulated."""

from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np

from optcore.errors import ExportMismatch
from optcore.export.layout_writer import EXACT, compare
from optcore.export.raw_reader import Array
from optcore.gguf.contents import Chunk, Contents
from optcore.gguf.layout import Entry

if TYPE_CHECKING:
    from optcore.run import Run


def verify(run: "Run", path: Path, entries: list[Entry], contents: Contents) -> None:
    """Raises `ExportMismatch` unless the file has all these tensors, and each decodes to its weight."""
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    expected = {entry.name: entry for entry in entries}
    if missing := expected.keys() - found.keys():
        raise ExportMismatch(f"{sorted(missing)[0]} is not in {path.name}")
    for count, (name, entry) in enumerate(expected.items()):
        _verify(entry, found[name], contents)
        run.progress("verifying", count + 1, len(expected))


def _verify(entry: Entry, tensor: gguf.ReaderTensor, contents: Contents) -> None:
    if entry.is_scale:
        if not np.array_equal(tensor.data, [np.float32(contents.second(source)) for source in entry.sources]):
            raise ExportMismatch(f"{entry.name} are not the second scales of its weights")
        return
    if (shape := tuple(int(length) for length in reversed(tensor.shape))) != entry.shape:
        raise ExportMismatch(f"{entry.name} has the shape {shape}, not {entry.shape}")
    slices = tensor.data if entry.has_experts else tensor.data[None]
    for source, stored in zip(entry.sources, slices, strict=True):
        factor = np.float32(contents.second(source) if entry.type == "NVFP4" else 1.0)
        for chunk in contents.chunks(entry, source):
            decoded = gguf.quants.dequantize(stored[chunk.rows], tensor.tensor_type) * factor
            _compare(f"{source}[{chunk.rows.start}:{chunk.rows.stop}]", decoded, chunk)


def _compare(name: str, decoded: Array, chunk: Chunk) -> None:
    values: Array = chunk.expected.numpy()
    if decoded.shape == values.shape and chunk.allowed is not None:
        is_close = np.abs(decoded.astype(np.float64) - values) <= chunk.allowed
        decoded = np.where(is_close, values, decoded)
    rows = (-1, values.shape[-1])
    compare(name, decoded.reshape(rows), chunk.expected.reshape(rows), EXACT)
