"""Numbers that places of a checkpoint's tensors share: in tables, by a hash, or because layers are tied.

Whatever the form, element e of a tensor is sign[e] * number[place[e]]. Training moves the numbers, and what it wrote is
read back here: the numbers are taken from the weights, and every bit of these must follow from them.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING

import torch

from optcore.algorithms.hashing import buckets_and_signs
from optcore.algorithms.packing import unpack_stream
from optcore.errors import FormLost
from optcore.hashed import BUCKETS, HashedTensor, load_hashed
from optcore.hashed import DESCRIPTION as HASHED
from optcore.palettized import DESCRIPTION as PALETTIZED
from optcore.palettized import PALETTES, PalettizedTensor, load_palettized
from optcore.streaming.reader import TensorReader
from optcore.streaming.tensor_file import TensorFile
from optcore.streaming.writer import name_weights
from optcore.tied import DESCRIPTION as TIED
from optcore.tied import load_tied

if TYPE_CHECKING:
    from optcore.run import Run

_DOCUMENTS = {PALETTES: PALETTIZED, BUCKETS: HASHED, "": TIED}


class Share(ABC):
    """Tensors of one shape that are made of the same numbers."""

    names: tuple[str, ...]
    count: int
    """Of the numbers."""
    dtype: torch.dtype
    """That the numbers are stored in."""
    stored_as: str
    """The tensor that holds them."""
    file: str
    """Where that is; empty for the weights themselves."""

    @abstractmethod
    def places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Which number an element is, int64, and its sign, int8; in the shape of any of the tensors."""


class _Table(Share):
    """All tables of a palettized tensor, one after the other."""

    file = PALETTES

    def __init__(self, name: str, found: PalettizedTensor, reader: TensorReader) -> None:
        self.names, self.stored_as = (name,), f"{name}.lut"
        self.dtype, self.count = reader.dtype(self.stored_as), reader.shape(self.stored_as)[0] * 2**found.bits
        self._found, self._reader = found, reader

    def places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Share`."""
        found = self._found
        packed = self._reader.tensor(f"{self.names[0]}.indices")
        index = unpack_stream(packed, found.bits, math.prod(found.shape)).long().view(-1, found.shape[-1])
        table_R = torch.arange(len(index)) // found.rows
        places = (index + (table_R * 2**found.bits)[:, None]).view(found.shape)
        return places, torch.ones_like(places, dtype=torch.int8)


class _Buckets(Share):
    """Buckets of a hashed tensor."""

    file = BUCKETS

    def __init__(self, name: str, found: HashedTensor, reader: TensorReader) -> None:
        self.names, self.stored_as = (name,), f"{name}.buckets"
        self.dtype, self.count = reader.dtype(self.stored_as), found.buckets
        self._found = found

    def places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Share`."""
        found = self._found
        rows_R = torch.arange(found.shape[0])
        return buckets_and_signs(rows_R, found.shape[1], found.buckets, found.seed, found.hash)


class _Copies(Share):
    """Tensors of tied layers."""

    file = ""

    def __init__(self, names: tuple[str, ...], reader: TensorReader) -> None:
        self.names, self.stored_as = names, names[0]
        self.dtype, self._shape = reader.dtype(names[0]), reader.shape(names[0])
        self.count = math.prod(self._shape)

    def places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Share`."""
        places = torch.arange(self.count).view(self._shape)
        return places, torch.ones_like(places, dtype=torch.int8)


def shares_of(folder: Path) -> Iterator[Share]:
    """What the documents of a checkpoint say of numbers that are shared."""
    if palettized := load_palettized(folder):
        reader = TensorReader(folder, PALETTES)
        yield from (_Table(name, one, reader) for name, one in palettized.tensors.items())
    if hashed := load_hashed(folder):
        reader = TensorReader(folder, BUCKETS)
        yield from (_Buckets(name, one, reader) for name, one in hashed.tensors.items())
    if tied := load_tied(folder):
        reader = TensorReader(folder)
        yield from (_Copies(names, reader) for names in tied.tensors)


def carry_shares(run: "Run") -> None:
    """Where numbers of `run.checkpoint` are shared, write those of `run.out`, a checkpoint of the same tensors, too.

    Raises `FormLost` where a weight is not the number any more that it shares with others.
    """
    after, numbers = TensorReader(run.out), dict[str, torch.Tensor]()
    for share in shares_of(run.checkpoint):
        found = _taken(share, after, TensorReader(run.checkpoint, share.file).tensor(share.stored_as))
        if share.file:
            numbers[share.stored_as] = found
    for file, document in _DOCUMENTS.items():
        if not (run.checkpoint / document).exists():
            continue
        if file:
            _rewrite(run, file, numbers)
        copyfile(run.checkpoint / document, run.out / document)


def _rewrite(run: "Run", file: str, numbers: dict[str, torch.Tensor]) -> None:
    """A file beside the weights with new numbers in it."""
    reader = TensorReader(run.checkpoint, file)
    with TensorFile(run.out / file, run.scratch) as written:
        for name in reader.names:
            written.add(name, numbers[name] if name in numbers else reader.tensor(name))
        written.close()
    name_weights(run.out)


def _taken(share: Share, reader: TensorReader, before: torch.Tensor) -> torch.Tensor:
    """The numbers in the type and shape of those before, which stay where no element is one; checked bit for bit."""
    place, sign = share.places()
    numbers = before.clone().flatten()
    for name in share.names:
        numbers[place.flatten()] = (reader.tensor(name) * sign).flatten().to(numbers.dtype)
    for name in share.names:
        tensor = reader.tensor(name)
        made = numbers[place].to(tensor.dtype) * sign
        lost = int((made.view(torch.uint8) != tensor.view(torch.uint8)).view(-1, tensor.itemsize).any(1).sum())
        if lost:
            raise FormLost(f"{lost} weights of {name} shared a number with others, and do not any more")
    return numbers.view(before.shape)
