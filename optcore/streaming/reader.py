"""Tensors of a checkpoint folder by name, read from safetensors with plain reads.

Files are not memory-mapped: touched pages of a mapping count as this process's memory until it ends, so the peak would
follow the model's depth; and a file that is cut while we run would kill us with SIGBUS instead of an error.
"""

import json
import math
import os
from pathlib import Path
from typing import NamedTuple

import torch

from optcore.errors import BadCheckpoint
from optcore.sizes import read_header

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class _Place(NamedTuple):
    """Where a tensor lies."""

    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    nbytes: int


class TensorReader:
    """Knows a checkpoint's headers; a tensor's bytes are read when it is asked for.

    `file` is one of the folder's files that no index names, instead of the model's weights.
    """

    def __init__(self, folder: Path, file: str = "") -> None:
        self.folder = folder
        self.bytes_read = 0
        """Bytes of all tensors asked for so far."""
        self._places = _places_in(folder / file) if file else _places(folder)

    @property
    def names(self) -> list[str]:
        """Every tensor's name, file by file."""
        return list(self._places)

    @property
    def files(self) -> list[str]:
        """The weight files, sorted."""
        return sorted({place.file for place in self._places.values()})

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(place.nbytes for place in self._places.values())

    @property
    def is_gapless(self) -> bool:
        """Whether the tensors of each file follow each other without gap or overlap, from its header to its end."""
        return all(map(self._fill, self.files))

    def _fill(self, file: str) -> bool:
        path = self.folder / file
        with path.open("rb") as opened:
            end = 8 + int.from_bytes(opened.read(8), "little")
        for place in sorted((one for one in self._places.values() if one.file == file), key=lambda one: one.start):
            if place.nbytes and place.start != end:
                return False
            end += place.nbytes
        return end == path.stat().st_size

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor on the CPU in its stored type, in memory of its own. Raises `BadCheckpoint` when it is missing."""
        tensor = self.uncounted(name)
        self.bytes_read += tensor.nbytes
        return tensor

    def uncounted(self, name: str, *, pinned: bool = False) -> torch.Tensor:
        """The same for whoever counts by himself; a GPU copies from `pinned` memory while the CPU does other things."""
        return _read(self.folder, self._place(name), pinned=pinned)

    def entry(self, name: str, number: int) -> torch.Tensor:
        """`tensor(name)[number]`; nothing else is read."""
        whole = self._place(name)
        nbytes = whole.nbytes // whole.shape[0]
        part = whole._replace(shape=whole.shape[1:], start=whole.start + number * nbytes, nbytes=nbytes)
        tensor = _read(self.folder, part)
        self.bytes_read += nbytes
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the header alone."""
        return self._place(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's stored type, from the header alone."""
        return self._place(name).dtype

    def nbytes(self, name: str) -> int:
        """A tensor's size, from the header alone."""
        return self._place(name).nbytes

    def _place(self, name: str) -> _Place:
        if name not in self._places:
            raise BadCheckpoint(f"tensor {name} is not in {self.folder.name}", field="/model")
        return self._places[name]


def _places(folder: Path) -> dict[str, _Place]:
    if not (folder / INDEX).exists():
        return _places_in(folder / SINGLE)
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    found = {file: _places_in(folder / file) for file in sorted(set(weight_map.values()))}
    missing = [name for name, file in weight_map.items() if name not in found[file]]
    if missing:
        raise _unreadable(weight_map[missing[0]], f"it has no tensor {missing[0]}, which {INDEX} places there")
    return {name: found[file][name] for name, file in sorted(weight_map.items(), key=lambda item: (item[1], item[0]))}


def _places_in(path: Path) -> dict[str, _Place]:
    try:
        header, size = read_header(path), path.stat().st_size
        with path.open("rb") as file:
            begin = 8 + int.from_bytes(file.read(8), "little")
    except (OSError, BadCheckpoint) as error:
        raise _unreadable(path.name, str(error)) from error
    return {name: _checked(path.name, name, facts, begin, size) for name, facts in header.items()}


def _checked(file: str, name: str, facts: dict[str, object], begin: int, size: int) -> _Place:
    """A tensor's place, after checking that header and file agree on it."""
    try:
        dtype = TYPES[str(facts["dtype"])]
        shape = tuple(int(length) for length in facts["shape"])  # type: ignore[attr-defined]
        start, end = (int(offset) for offset in facts["data_offsets"])  # type: ignore[attr-defined]
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(file, f"its header does not describe {name} ({error})") from error
    nbytes = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or start < 0 or end - start != nbytes or begin + end > size:
        raise _unreadable(file, f"{name} does not lie where its header says")
    return _Place(file, dtype, shape, begin + start, nbytes)


def _read(folder: Path, place: _Place, *, pinned: bool = False) -> torch.Tensor:
    raw = torch.empty(place.nbytes, dtype=torch.uint8, pin_memory=pinned)
    _read_into(memoryview(raw.numpy()), folder / place.file, place.start)
    return raw.view(place.dtype).view(place.shape)


def _read_into(into: memoryview, path: Path, start: int) -> None:
    """Fill a buffer from a file; the system may give less than asked for at a time."""
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            done = 0
            while done < len(into):
                count = os.preadv(file, [into[done:]], start + done)
                if not count:
                    raise _unreadable(path.name, "it ends too early")
                done += count
        finally:
            os.close(file)
    except OSError as error:
        raise _unreadable(path.name, str(error)) from error


def _unreadable(file: str, why: str) -> BadCheckpoint:
    return BadCheckpoint(
        f"cannot read {file}: {why}", remedy="download the model again; the file is cut or damaged", field="/model"
    )
