"""A compact checkpoint: every tensor in the smallest form that gives its exact bits, and `compact.json` says how.

Parts of a tensor are in `compact.safetensors` under its name and a suffix; no other tensor is there, and nothing lies
between them, so the bytes that the document counts are the bytes of the data. Bits fill bytes from the lowest up.
"""

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from optcore.errors import BadCheckpoint
from optcore.frozen import Frozen

DESCRIPTION = "compact.json"
WEIGHTS = "compact.safetensors"
_WIDTHS = {8: ("F64", "I64"), 4: ("F32", "I32"), 2: ("F16", "BF16", "I16")}
_BYTES = ("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0")
ITEM_bytes = {name: width for width, names in {**_WIDTHS, 1: _BYTES}.items() for name in names}
"""Bytes of an element, by what safetensors calls its type."""

Dtype = Literal["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"]
Half = Literal["F16", "BF16"]
Size = Annotated[int, Field(ge=0, lt=2**40)]
Parts = dict[str, tuple[str, tuple[int, ...]]]
"""Type and shape by suffix."""


class _Form(Frozen):
    """How a tensor is stored."""

    shape: tuple[Size, ...] = Field(max_length=8)
    dtype: Dtype

    @property
    def elements(self) -> int:
        """Of the tensor itself."""
        return math.prod(self.shape)

    @property
    def parts(self) -> Parts:
        """What of it is in the file."""
        raise NotImplementedError

    @property
    def most_times(self) -> int:
        """How many times larger than its parts the tensor may be: beyond what we write, and it would be a bomb."""
        return 64  # a bit for each element of 8 bytes

    @property
    def bytes(self) -> int:
        """Of its parts."""
        return sum(math.prod(shape) * ITEM_bytes[dtype] for dtype, shape in self.parts.values())

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns, all dimensions but the last being rows."""
        return math.prod(self.shape[:-1]), (self.shape or (1,))[-1]

    @model_validator(mode="after")
    def _not_a_bomb(self) -> Self:
        if self.parts and self.elements * ITEM_bytes[self.dtype] > self.most_times * max(1, self.bytes):
            raise ValueError(f"a tensor of shape {self.shape} from {self.bytes} bytes")
        return self


class Stored(_Form):
    """The tensor itself."""

    form: Literal["stored"] = "stored"

    @property
    def parts(self) -> Parts:
        """The tensor, under its own name."""
        return {"": (self.dtype, self.shape)}


class Palette(_Form):
    """Indices into tables: element e is value `indices[e]` of the table of its row."""

    form: Literal["palette"] = "palette"
    bits: int = Field(ge=1, le=8)
    rows: int = Field(ge=1)
    """Rows that share a table, the last table being for those that are left."""
    table_dtype: Half

    @property
    def parts(self) -> Parts:
        """Tables [ceil(rows / rows a table), 2^bits], and indices of `bits` bits, element after element."""
        tables = -(-self.matrix[0] // self.rows)
        return {
            ".lut": (self.table_dtype, (tables, 2**self.bits)),
            ".indices": ("U8", (-(-self.elements * self.bits // 8),)),
        }


class Buckets(_Form):
    """Numbers that places share by a hash (`optcore/algorithms/hashing.py`)."""

    form: Literal["buckets"] = "buckets"
    shape: tuple[Size, Size]
    dtype: Literal["F64", "F32", "F16", "BF16"]
    buckets: int = Field(ge=1, lt=2**32)
    seed: int = Field(ge=0, lt=2**31)
    hash: Literal["murmur3", "modulo"]

    @property
    def most_times(self) -> int:
        """The smallest ratio of `hash_share` is 2^-10, rounded to whole numbers."""
        return 2**11

    @property
    def parts(self) -> Parts:
        """The numbers, in the tensor's type."""
        return {".buckets": (self.dtype, (self.buckets,))}


class Factors(_Form):
    """The product of two thin matrices, taken in float64 and rounded to float32 and then to the tensor's type."""

    form: Literal["factors"] = "factors"
    shape: tuple[Size, Size]
    rank: int = Field(ge=1, lt=2**32)
    factor_dtype: Literal["F64", "F32", "F16", "BF16"]

    @property
    def most_times(self) -> int:
        """Rank 1 in a matrix of 2^17 rows and columns."""
        return 2**16

    @property
    def parts(self) -> Parts:
        """left [outputs, rank] and right [rank, inputs]."""
        outputs, inputs = self.shape
        return {".left": (self.factor_dtype, (outputs, self.rank)), ".right": (self.factor_dtype, (self.rank, inputs))}


class Sparse(_Form):
    """A bit for each element that says whether any bit of it is set, and those elements in their order."""

    form: Literal["sparse"] = "sparse"
    nonzero: Size

    @property
    def parts(self) -> Parts:
        """The mask and the values."""
        return {".mask": ("U8", (-(-self.elements // 8),)), ".values": (self.dtype, (self.nonzero,))}


class Same(_Form):
    """The same bits as another tensor's, stored there."""

    form: Literal["same"] = "same"
    of: str

    @property
    def parts(self) -> Parts:
        """Nothing of its own."""
        return {}


Form = Annotated[Stored | Palette | Buckets | Factors | Sparse | Same, Field(discriminator="form")]


class CompactTensor(Frozen):
    """One tensor of the model."""

    stored_as: Form
    bytes: int
    """Of its parts in the file."""
    bits_per_weight: float


class Compacted(Frozen):
    """The document beside the weights."""

    version: Literal[1] = 1
    tensors: dict[str, CompactTensor]
    """By name in the checkpoint that it decodes to."""
    data_bytes: int
    """Of all tensors: the size of the file's data, its header left out."""
    parameters: int
    bits_per_weight: float
    note: str = (
        "No engine loads this folder. `decode(folder, out)` of optcore.export.compact_decoder writes the plain "
        "checkpoint that it stands for, bit for bit."
    )

    @classmethod
    def of(cls, forms: dict[str, Form]) -> Self:
        """The document of tensors in their forms."""
        tensors = {
            name: CompactTensor(
                stored_as=form, bytes=form.bytes, bits_per_weight=8 * form.bytes / max(1, form.elements)
            )
            for name, form in forms.items()
        }
        size = sum(form.bytes for form in forms.values())
        count = sum(form.elements for form in forms.values())
        return cls(tensors=tensors, data_bytes=size, parameters=count, bits_per_weight=8 * size / max(1, count))

    @property
    def forms(self) -> dict[str, Form]:
        """Each tensor's form."""
        return {name: tensor.stored_as for name, tensor in self.tensors.items()}

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if any(tensor.bytes != tensor.stored_as.bytes for tensor in self.tensors.values()):
            raise ValueError("a tensor's bytes are not those of its form")
        if self.data_bytes != sum(tensor.bytes for tensor in self.tensors.values()):
            raise ValueError("data_bytes is not the sum of the tensors' bytes")
        forms = self.forms
        for name, form in forms.items():
            if isinstance(form, Same):
                other = forms.get(form.of)
                if other is None or isinstance(other, Same) or (other.shape, other.dtype) != (form.shape, form.dtype):
                    raise ValueError(f"{name} is said to be the same as {form.of}, and cannot be")
        return self

    def save(self, folder: Path) -> None:
        """Write it into a folder."""
        (folder / DESCRIPTION).write_text(self.model_dump_json(indent=2) + "\n")


def load_compact(folder: Path) -> Compacted:
    """Read the document. Raises `BadCheckpoint` where there is none, or none that adds up."""
    try:
        return Compacted.model_validate_json((folder / DESCRIPTION).read_bytes())
    except (OSError, ValidationError) as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise BadCheckpoint(
            f"{DESCRIPTION} does not describe a compact checkpoint: {why}",
            remedy="download the folder again; it was not written by this program, or is damaged",
            field="/model",
        ) from error
