"""Lays a checkpoint out in the smallest forms that give its exact bits, and proves them."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from optcore.compact import WEIGHTS, Buckets, Compacted, Dtype, Factors, Form, Half, Palette, Same, Sparse, Stored
from optcore.errors import ExportMismatch
from optcore.export.compact_decoder import CompactCheckpoint
from optcore.factored import FACTORS, load_factored
from optcore.hashed import BUCKETS, load_hashed
from optcore.links import link_companions, link_documents
from optcore.palettized import PALETTES, load_palettized
from optcore.streaming.reader import TensorReader
from optcore.streaming.tensor_file import NAMES, TensorFile

if TYPE_CHECKING:
    from optcore.run import Run

Described = tuple[Form, dict[str, torch.Tensor]]
"""A form, and the parts that go with it by suffix."""


def write_compact(run: "Run") -> None:
    """Write `run.checkpoint` to `run.out`, and the document; raises `ExportMismatch` where it does not decode to it."""
    reader, forms = TensorReader(run.checkpoint), dict[str, Form]()
    known, first = _Known(run.checkpoint), dict[str, str]()
    with TensorFile(run.out / WEIGHTS, run.scratch) as file:
        for done, name in enumerate(reader.names, start=1):
            tensor = reader.tensor(name)
            other = first.setdefault(_digest(tensor), name)
            forms[name], parts = _same(tensor, other) if other != name else known.smallest(name, tensor)
            for suffix, part in parts.items():
                file.add(f"{name}{suffix}", part)
            run.progress("packing", done, len(reader.names))
        file.close()
    document = Compacted.of(forms)
    document.save(run.out)
    link_companions(run.checkpoint, run.out)
    link_documents(run.checkpoint, run.out)
    _prove(run, reader)
    run.results["compact"] = document.model_dump(mode="json", exclude={"note", "version", "tensors"})
    counts = {
        kind: sum(form.form == kind for form in forms.values()) for kind in sorted({f.form for f in forms.values()})
    }
    said = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    run.notice(f"{document.bits_per_weight:.4g} bits a weight; tensors by form: {said}. {document.note}")


class _Known:
    """What a checkpoint says of the forms of its tensors."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._palettes, self._hashed = load_palettized(folder), load_hashed(folder)
        self._factored = load_factored(folder)

    def smallest(self, name: str, tensor: torch.Tensor) -> Described:
        """The form with the fewest bytes, of those that are said to give the tensor and of its zeros."""
        stored: Described = (Stored(**_kind(tensor)), {"": tensor})
        found = [stored, *self._said(name, tensor), *_sparse(tensor)]
        return min(found, key=lambda one: one[0].bytes)

    def _said(self, name: str, tensor: torch.Tensor) -> Iterator[Described]:
        if self._palettes and (palette := self._palettes.tensors.get(name)):
            parts = self._parts(PALETTES, {".lut": f"{name}.lut", ".indices": f"{name}.indices"})
            table_dtype = cast(Half, NAMES[parts[".lut"].dtype])
            yield Palette(**_kind(tensor), bits=palette.bits, rows=palette.rows, table_dtype=table_dtype), parts
        if self._hashed and (shared := self._hashed.tensors.get(name)):
            hashing = shared.model_dump(include={"buckets", "seed", "hash"})
            yield Buckets(**_kind(tensor), **hashing), self._parts(BUCKETS, {".buckets": f"{name}.buckets"})
        if self._factored and (product := self._factored.tensors.get(name)):
            module = name.removesuffix(".weight")
            parts = self._parts(FACTORS, {".left": f"{module}.left", ".right": f"{module}.right"})
            # Another BLAS, or a GPU, may have added in another order: what comes out otherwise is stored as it is.
            if torch.equal((parts[".left"].double() @ parts[".right"].double()).float().to(tensor.dtype), tensor):
                factor_dtype = cast(Half, NAMES[parts[".left"].dtype])
                yield Factors(**_kind(tensor), rank=product.rank, factor_dtype=factor_dtype), parts

    def _parts(self, file: str, names: dict[str, str]) -> dict[str, torch.Tensor]:
        reader = TensorReader(self._folder, file)
        return {suffix: reader.tensor(name) for suffix, name in names.items()}


def _sparse(tensor: torch.Tensor) -> Iterator[Described]:
    """Whether any bit of an element is set: -0.0 is kept."""
    if not tensor.numel():
        return
    octets = tensor.contiguous().view(-1).view(torch.uint8).view(-1, tensor.dtype.itemsize)
    is_set_E = octets.ne(0).any(1)
    mask = torch.from_numpy(np.packbits(is_set_E.numpy(), bitorder="little"))
    values = octets[is_set_E].flatten().view(tensor.dtype)
    yield Sparse(**_kind(tensor), nonzero=len(values)), {".mask": mask, ".values": values}


def _same(tensor: torch.Tensor, other: str) -> Described:
    return Same(**_kind(tensor), of=other), {}


def _kind(tensor: torch.Tensor) -> "dict[str, object]":
    return {"shape": tuple(tensor.shape), "dtype": cast(Dtype, NAMES[tensor.dtype])}


def _digest(tensor: torch.Tensor) -> str:
    """The same for tensors of the same bits, type and shape."""
    found = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    found.update(_octets(tensor).numpy().data)
    return found.hexdigest()


def _prove(run: "Run", reader: TensorReader) -> None:
    decoded = CompactCheckpoint(run.out)
    for done, name in enumerate(reader.names, start=1):
        if not torch.equal(_octets(decoded.tensor(name)), _octets(reader.tensor(name))):
            raise ExportMismatch(f"{name} does not decode to the bits of the checkpoint")
        run.progress("verifying", done, len(reader.names))


def _octets(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
