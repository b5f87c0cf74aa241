"""The factors of a model in one safetensors file, written layer by layer: no more than one pair is in memory."""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Self

import torch

from optcore.factored import FACTORS
from optcore.sizes import tensor_sizes
from optcore.sources.checkpoint_files import INDEX, SINGLE

_TYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


class FactorsFile:
    """Tensors in the order in which they are added; the file is there after `close`.

    safetensors wants every tensor's place in front of the bytes, and ranks may be known late: bytes are collected in a
    nameless file in `scratch` first.
    """

    def __init__(self, path: Path, scratch: Path) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._bytes = TemporaryFile(dir=scratch)  # noqa: SIM115 it is closed by `__exit__`
        self._header: dict[str, object] = {"__metadata__": {"format": "pt"}}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bytes.close()

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Append one tensor of a floating-point type."""
        begin = self._bytes.tell()
        self._bytes.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        places = [begin, self._bytes.tell()]
        self._header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": places}

    def close(self) -> None:
        """Write the file, where anything was added."""
        if len(self._header) == 1:
            return
        header = json.dumps(self._header, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        self._bytes.seek(0)
        with self._path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            shutil.copyfileobj(self._bytes, file, 1 << 20)


def name_weights(folder: Path) -> None:
    """Engines read every safetensors file of a folder whose index does not say which are the model's."""
    if (folder / INDEX).exists() or not (folder / FACTORS).exists():
        return
    sizes = tensor_sizes(folder / SINGLE)
    total = sum(nbytes for _, nbytes in sizes.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict.fromkeys(sorted(sizes), SINGLE)}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
