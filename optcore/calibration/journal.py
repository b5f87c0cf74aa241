"""What a pass has finished, on the disk: a killed process goes on behind the last layer whose record is there."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from optcore.durable import settle, write_settled
from optcore.importance import IMPORTANCE, Importance, join_importance, write_importance
from optcore.quantization import OUTSIDE, QuantizedLayer, layer_file
from optcore.streaming.staging import on_cpu


class Journal:
    """Layer files in the checkpoint folder, and beside them, in a folder that is dropped at the end, their records."""

    def __init__(self, out: Path, records: Path) -> None:
        self.out = out
        self.bytes_written = 0
        self._records = records
        out.mkdir(parents=True, exist_ok=True)
        records.mkdir(parents=True, exist_ok=True)

    def layer(self, index: int) -> QuantizedLayer | None:
        """The record of a finished layer."""
        path = self._record(index)
        return QuantizedLayer.model_validate_json(path.read_text()) if path.exists() else None

    def write(
        self,
        index: int,
        tensors: dict[str, torch.Tensor],
        layer: QuantizedLayer,
        importance: Mapping[str, Importance],
    ) -> None:
        """Make a layer durable: its bytes first, then the record that says they are whole."""
        self._save(tensors, layer_file(index))
        if importance:
            write_importance(self._measured(index), importance)
        write_settled(self._record(index), layer.model_dump_json())

    def write_outside(self, tensors: dict[str, torch.Tensor]) -> None:
        """The file of everything outside the decoder layers."""
        self._save(tensors, OUTSIDE)

    def write_importance(self, layers: int, head: Mapping[str, Importance]) -> None:
        """One file of what was kept of so many layers, and of the head; none where no text was measured."""
        if head:
            write_importance(self._measured(layers), head)
        join_importance((self._measured(index) for index in range(layers + 1)), self.out / IMPORTANCE)

    def _measured(self, index: int) -> Path:
        return self._records / f"{index:05d}.safetensors"

    def _record(self, index: int) -> Path:
        return self._records / f"{index:05d}.json"

    def _save(self, tensors: dict[str, torch.Tensor], name: str) -> None:
        part = self.out / f"{name}.part"
        save_file(on_cpu(tensors), part, metadata={"format": "pt"})
        part.chmod(0o644)
        self.bytes_written += part.stat().st_size
        settle(part, self.out / name)
