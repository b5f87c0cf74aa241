"""A checkpoint's safetensors files, written part by part so that only one part is ever in memory."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from optcore.sizes import tensor_sizes
from optcore.streaming.reader import INDEX, SINGLE

PART_bytes = 2**30


class TensorWriter:
    """Collects tensors and writes a file when `part_bytes` are full; `close` names the files and writes the index."""

    def __init__(self, folder: Path, part_bytes: int = PART_bytes) -> None:
        self.folder = folder
        self.part_bytes = part_bytes
        self._parts: list[list[str]] = []
        self._pending: dict[str, torch.Tensor] = {}
        self._pending_bytes = 0
        self._total_bytes = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Add one tensor; it may be written later, so it must not change afterwards."""
        if self._pending and self._pending_bytes + tensor.nbytes > self.part_bytes:
            self._flush()
        self._pending[name] = tensor.contiguous()
        self._pending_bytes += tensor.nbytes
        self._total_bytes += tensor.nbytes

    def close(self) -> None:
        """Write what is left, and the index when there is more than one part."""
        self._flush()
        count = len(self._parts)
        if count == 1:
            self._part_path(0).rename(self.folder / "model.safetensors")
            return
        weight_map = {}
        for number, names in enumerate(self._parts):
            file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            self._part_path(number).rename(self.folder / file)
            weight_map.update(dict.fromkeys(names, file))
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")

    def _flush(self) -> None:
        if not self._pending:
            return
        path = self._part_path(len(self._parts))
        save_file(self._pending, path, metadata={"format": "pt"})
        path.chmod(0o644)
        self._parts.append(list(self._pending))
        self._pending, self._pending_bytes = {}, 0

    def _part_path(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.safetensors"


def name_weights(folder: Path) -> None:
    """Write an index where there is none: engines read every safetensors file of a folder unless an index says which
    are the model's, and a file of another form lies beside it."""
    if (folder / INDEX).exists():
        return
    sizes = tensor_sizes(folder / SINGLE)
    total = sum(nbytes for _, nbytes in sizes.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict.fromkeys(sorted(sizes), SINGLE)}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
