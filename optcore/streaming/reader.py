"""Tensors of a checkpoint folder by name, memory-mapped from safetensors."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from optcore.errors import BadCheckpoint

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class TensorReader:
    """Opens a checkpoint's files; a tensor is read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file_of = _weight_map(folder)
        self._open: dict[str, safe_open] = {}

    @property
    def names(self) -> list[str]:
        """Every tensor's name, in the order in which the files list them."""
        return list(self._file_of)

    @property
    def files(self) -> list[str]:
        """The weight files, sorted."""
        return sorted(set(self._file_of.values()))

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor on the CPU in its stored type. Raises `BadCheckpoint` when it is missing."""
        if name not in self._file_of:
            raise BadCheckpoint(f"tensor {name} is not in {self.folder.name}", field="/model")
        return self._handle(self._file_of[name]).get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the header alone."""
        return tuple(self._handle(self._file_of[name]).get_slice(name).get_shape())

    def _handle(self, file: str) -> safe_open:
        if file not in self._open:
            self._open[file] = _open(self.folder / file)
        return self._open[file]


def _weight_map(folder: Path) -> dict[str, str]:
    if (folder / INDEX).exists():
        weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
        return dict(sorted(weight_map.items(), key=lambda item: (item[1], item[0])))
    return dict.fromkeys(_open(folder / SINGLE).keys(), SINGLE)


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (OSError, SafetensorError) as error:
        raise BadCheckpoint(
            f"cannot read {path.name}: {error}",
            remedy="download the model again; the file is cut or damaged",
            field="/model",
        ) from error
