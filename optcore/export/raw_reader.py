"""Reads safetensors files as bytes, with numpy alone: decoders must not share code with what wrote the files.

Layout: https://huggingface.co/docs/safetensors#format (8 bytes of header length, a JSON header, the tensors' bytes).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from optcore.errors import ExportMismatch

Array = np.ndarray[Any, np.dtype[Any]]

_DTYPES = {
    "F32": np.float32,
    "F16": np.float16,
    "F64": np.float64,
    "BF16": np.uint16,
    "F8_E4M3": np.uint8,
    "U8": np.uint8,
    "I8": np.int8,
    "I32": np.int32,
    "I64": np.int64,
    "BOOL": np.bool_,
}


class RawFiles:
    """The tensors of a checkpoint folder, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._where: dict[str, tuple[Path, int, dict[str, Any]]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            self._where |= {name: (path, 8 + length, entry) for name, entry in header.items()}
        self.names = frozenset(self._where)
        """Of all tensors."""

    def dtype(self, name: str) -> str:
        """A tensor's type, as the file names it, such as `F8_E4M3`."""
        return str(self._entry(name)[2]["dtype"])

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return tuple(self._entry(name)[2]["shape"])

    def bits(self, name: str) -> Array:
        """A tensor as it is stored; types that numpy lacks come as unsigned integers of their width."""
        path, start, entry = self._entry(name)
        begin, end = entry["data_offsets"]
        with path.open("rb") as file:
            file.seek(start + begin)
            data = file.read(end - begin)
        return np.frombuffer(data, _DTYPES[entry["dtype"]]).reshape(entry["shape"])

    def floats(self, name: str) -> Array:
        """A floating-point tensor's values, float32."""
        stored, bits = self.dtype(name), self.bits(name)
        if stored == "BF16":
            return (bits.astype(np.uint32) << 16).view(np.float32)
        return e4m3(bits) if stored == "F8_E4M3" else bits.astype(np.float32)

    def _entry(self, name: str) -> tuple[Path, int, dict[str, Any]]:
        if name not in self._where:
            raise ExportMismatch(f"{name} was not written")
        return self._where[name]


def e4m3(octets: Array) -> Array:
    """Values of FP8 E4M3 octets by their fields (OCP 8-bit floating point 1.0): bias 7, no infinity, 0x7f is NaN."""
    exponent, mantissa = (octets >> 3) & 15, (octets & 7).astype(np.float32)
    normal = (1 + mantissa / 8) * np.exp2(exponent.astype(np.float32) - 7)
    magnitude = np.where(exponent == 0, mantissa * np.float32(2.0**-9), normal)
    magnitude = np.where((octets & 0x7F) == 0x7F, np.float32(np.nan), magnitude)
    return np.where(octets & 0x80, -magnitude, magnitude).astype(np.float32)


def e2m1(codes: Array) -> Array:
    """Values of FP4 E2M1 codes by their fields (OCP Microscaling Formats 1.0): bias 1, exponent 0 is subnormal."""
    exponent, mantissa = (codes >> 1) & 3, (codes & 1).astype(np.float32)
    normal = (1 + mantissa / 2) * np.exp2(exponent.astype(np.float32) - 1)
    magnitude = np.where(exponent == 0, mantissa / 2, normal)
    return np.where(codes & 8, -magnitude, magnitude).astype(np.float32)
