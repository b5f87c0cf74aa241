"""Reads a compact checkpoint back, with nothing but its folder to go by.

    decode(folder, out)                      # a plain checkpoint that transformers loads
    CompactCheckpoint(folder).tensor(name)   # one tensor

Written against the published layout with numpy and not against our writer, so that a mistake in one of them shows.
"""

import shutil
from pathlib import Path

import numpy as np
import torch

from optcore.compact import WEIGHTS, Buckets, Factors, ITEM_bytes, Palette, Same, Sparse, load_compact
from optcore.errors import BadCheckpoint, FolderUnusable, OutOfDisk
from optcore.export.raw_reader import Array
from optcore.links import link_companions, link_documents
from optcore.streaming.reader import TYPES, TensorReader
from optcore.streaming.writer import TensorWriter

_AT_ONCE = 2**21
"""Elements whose bits are unpacked together; 8 divides it."""
_ROWS_elements = 2**22


def decode(folder: Path, out: Path) -> None:
    """Write the plain checkpoint that a compact one stands for to `out`, tensor by tensor; the folder is made.

    Raises `BadCheckpoint` for a folder that is damaged or contradicts itself, before anything is written,
    `FolderUnusable` for an `out` that holds anything, and `OutOfDisk` where the tensors would not fit.
    """
    checkpoint = CompactCheckpoint(folder)
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise FolderUnusable(f"{out} is not empty", remedy="name a new folder, or empty this one")
    if checkpoint.total_bytes > (free := shutil.disk_usage(out).free):
        raise OutOfDisk(f"the decoded weights take {checkpoint.total_bytes} bytes, and {free} are free")
    writer = TensorWriter(out)
    for name in checkpoint.names:
        writer.add(name, checkpoint.tensor(name))
    writer.close()
    link_companions(folder, out)
    link_documents(folder, out)


class CompactCheckpoint:
    """The tensors of a compact folder, by name, decoded when they are asked for.

    Raises `BadCheckpoint` unless the file holds just the parts that the document counts, in their types and shapes.
    """

    def __init__(self, folder: Path) -> None:
        self._forms = load_compact(folder).forms
        self._reader = TensorReader(folder, WEIGHTS)
        wanted = {f"{name}{suffix}": part for name, form in self._forms.items() for suffix, part in form.parts.items()}
        found = {name: (self._reader.dtype(name), self._reader.shape(name)) for name in self._reader.names}
        for name in sorted(wanted.keys() | found.keys()):
            dtype, shape = wanted.get(name, ("", ()))
            if name not in wanted or found.get(name) != (TYPES[dtype], shape):
                said = f"{dtype} {list(shape)}" if name in wanted else "nothing of it"
                raise _bad(f"{WEIGHTS} has {_spoken(found.get(name))} as {name}, and the document says {said}")
        if sum(form.bytes for form in self._forms.values()) != self._reader.total_bytes:
            raise _bad(f"two tensors of the document have one name in {WEIGHTS}")
        if not self._reader.is_gapless:
            raise _bad(f"parts in {WEIGHTS} overlap, or something lies between or behind them")

    @property
    def names(self) -> list[str]:
        """Names of the tensors of the model."""
        return list(self._forms)

    @property
    def total_bytes(self) -> int:
        """Of all decoded tensors."""
        return sum(form.elements * ITEM_bytes[form.dtype] for form in self._forms.values())

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, in its own type. Raises `BadCheckpoint` for one that is not there."""
        if name not in self._forms:
            raise _bad(f"there is no tensor {name}")
        form = self._forms[name]
        match form:
            case Same():
                return self.tensor(form.of)
            case Palette():
                return self._palette(name, form)
            case Buckets():
                return self._buckets(name, form)
            case Factors():
                return self._factors(name, form)
            case Sparse():
                return self._sparse(name, form)
        return self._reader.tensor(name)

    def _palette(self, name: str, form: Palette) -> torch.Tensor:
        table_GL = self._reader.tensor(f"{name}.lut")
        index_E = torch.from_numpy(_fields(self._reader.tensor(f"{name}.indices").numpy(), form.bits, form.elements))
        place_RK = index_E.view(form.matrix)
        decoded = torch.empty(form.matrix, dtype=TYPES[form.dtype])
        for number, table_L in enumerate(table_GL.to(decoded.dtype)):
            rows = slice(number * form.rows, (number + 1) * form.rows)
            decoded[rows] = table_L[place_RK[rows].int()]
        return decoded.view(form.shape)

    def _buckets(self, name: str, form: Buckets) -> torch.Tensor:
        values_B, (rows, columns) = self._reader.tensor(f"{name}.buckets"), form.shape
        decoded = torch.empty(form.shape, dtype=values_B.dtype)
        if not form.elements:
            return decoded
        step = max(1, _ROWS_elements // max(1, columns))
        for start in range(0, rows, step):
            row_R1 = np.arange(start, min(start + step, rows), dtype=np.uint64)[:, None]
            place_RK, is_negative_RK = _hashed(row_R1, np.arange(columns, dtype=np.uint64), form)
            values_RK = values_B[torch.from_numpy(place_RK.astype(np.int64))]
            decoded[start : start + step] = torch.where(torch.from_numpy(is_negative_RK), -values_RK, values_RK)
        return decoded

    def _factors(self, name: str, form: Factors) -> torch.Tensor:
        left_NR, right_RK = (self._reader.tensor(f"{name}{suffix}").double() for suffix in (".left", ".right"))
        return (left_NR @ right_RK).float().to(TYPES[form.dtype])

    def _sparse(self, name: str, form: Sparse) -> torch.Tensor:
        mask = self._reader.tensor(f"{name}.mask").numpy()
        bits = np.unpackbits(mask, bitorder="little")
        if int(bits.sum()) != form.nonzero or bits[form.elements :].any():
            raise _bad(f"the mask of {name} does not have {form.nonzero} bits set")
        decoded = torch.zeros(form.elements, ITEM_bytes[form.dtype], dtype=torch.uint8)  # not all types can be indexed
        values = self._reader.tensor(f"{name}.values").view(torch.uint8).view(form.nonzero, decoded.shape[1])
        decoded[torch.from_numpy(bits[: form.elements].view(np.bool_))] = values
        return decoded.view(TYPES[form.dtype]).view(form.shape)


def _fields(octets: Array, bits: int, count: int) -> Array:
    """Unsigned fields of `bits` bits [count], uint8, from a stream of bits that fill bytes from the lowest up."""
    fields = np.empty(count, np.uint8)
    for start in range(0, count, _AT_ONCE):
        stop = min(start + _AT_ONCE, count)
        part = np.unpackbits(octets[start * bits // 8 : -(-stop * bits // 8)], bitorder="little")
        padded = np.zeros((stop - start, 8), np.uint8)
        padded[:, :bits] = part[: (stop - start) * bits].reshape(-1, bits)
        fields[start:stop] = np.packbits(padded, axis=1, bitorder="little")[:, 0]
    return fields


def _hashed(row_R1: Array, column_K: Array, form: Buckets) -> tuple[Array, Array]:
    """Bucket of each element, and whether its sign is negative."""
    if form.hash == "modulo":
        place_RK = (row_R1 * np.uint64(form.shape[1]) + column_K) % np.uint64(form.buckets)
        return place_RK, np.zeros(place_RK.shape, np.bool_)
    row = _finalized((row_R1 ^ np.uint64(form.seed)).astype(np.uint32))
    hashed = _finalized(row + column_K.astype(np.uint32) * np.uint32(0x9E3779B9))
    return hashed % np.uint32(form.buckets), (_finalized(hashed ^ np.uint32(0x85157AF5)) & 1).astype(np.bool_)


def _finalized(x: Array) -> Array:
    """MurmurHash3's finalizer; numpy's 32-bit arrays wrap around as it wants."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    mixed: Array = x ^ (x >> 16)
    return mixed


def _spoken(found: "tuple[torch.dtype, tuple[int, ...]] | None") -> str:
    return f"{str(found[0]).removeprefix('torch.')} {list(found[1])}" if found else "nothing"


def _bad(message: str) -> BadCheckpoint:
    return BadCheckpoint(
        message,
        remedy="download the folder again; it was not written by this program, or is damaged",
        field="/model",
    )
