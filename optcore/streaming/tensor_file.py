"""Tensors in one safetensors file, written as they come: no more than one of them is in memory."""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Self

import torch

from optcore.streaming.reader import TYPES

NAMES = {dtype: name for name, dtype in TYPES.items()}
"""What safetensors calls a type."""
_WIDTHS = (8, 4, 2, 1)


class TensorFile:
    """Tensors in the order in which they are added, wide types first; the file is there after `close`.

    safetensors wants every tensor's place in front of the bytes, and they may be known late: bytes are collected in
    nameless files in `scratch` first. One for each width of element, as readers want numbers at multiples of their
    width and there is no padding between tensors.
    """

    def __init__(self, path: Path, scratch: Path) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._bytes = {width: TemporaryFile(dir=scratch) for width in _WIDTHS}  # noqa: SIM115 closed by `__exit__`
        self._places: dict[str, tuple[torch.dtype, list[int], int, int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for file in self._bytes.values():
            file.close()

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Append one tensor."""
        file = self._bytes[tensor.dtype.itemsize]
        begin = file.tell()
        file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        self._places[name] = (tensor.dtype, list(tensor.shape), begin, file.tell())

    def close(self) -> None:
        """Write the file, where anything was added."""
        if not self._places:
            return
        header = json.dumps(self._header(), separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        with self._path.open("wb") as out:
            out.write(len(header).to_bytes(8, "little") + header)
            for file in self._bytes.values():
                file.seek(0)
                shutil.copyfileobj(file, out, 1 << 20)

    def _header(self) -> dict[str, object]:
        starts, end = {}, 0
        for width, file in self._bytes.items():
            starts[width] = end
            end += file.tell()
        found: dict[str, object] = {"__metadata__": {"format": "pt"}}
        for width, start in starts.items():  # in the order of the bytes
            for name, (dtype, shape, begin, stop) in self._places.items():
                if dtype.itemsize == width:
                    offsets = [start + begin, start + stop]
                    found[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": offsets}
        return found
