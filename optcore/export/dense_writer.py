"""Tensors of a dequantized checkpoint."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from optcore.errors import RecipeError
from optcore.export.layout_writer import Bound, Config, Layout
from optcore.export.raw_reader import Array, RawFiles
from optcore.sizes import read_header, weight_files

if TYPE_CHECKING:
    from optcore.streaming.quantized import QuantizedCheckpoint

# Half a unit in the last place, and half of the smallest subnormal number.
_BOUNDS = {
    torch.float32: Bound(),
    torch.bfloat16: Bound(2.0**-8, 2.0**-134),
    torch.float16: Bound(2.0**-11, 2.0**-25),
}


class DenseLayout(Layout):
    """One `weight` for each linear layer, rounded to the type of the model."""

    def __init__(self, state: "QuantizedCheckpoint", model: Path) -> None:
        super().__init__(state)
        self._dtype = _stored_dtype(model)
        self._check_names(model)

    def linear(self, name: str) -> Mapping[str, torch.Tensor]:
        """The decoded weight."""
        return {"weight": self.state.weight(name).to(self._dtype)}

    def decode(self, files: RawFiles, name: str) -> Array:
        """The weight as it lies in the file."""
        return files.floats(f"{name}.weight")

    def config(self, config: Config) -> Config:
        """The model's own: nothing tells it from a dense model's."""
        return config

    def bound(self, name: str) -> Bound:
        """What rounding to the model's type can do."""
        return _BOUNDS[self._dtype]

    def _check_names(self, model: Path) -> None:
        """Readers of a dense model ask for the source's tensors, and make up what they do not find."""
        known = {name for path in weight_files(model) for name in read_header(path)}
        if lost := next((name for name in self.state.description.modules if f"{name}.weight" not in known), None):
            raise RecipeError(
                f"the model holds all experts of a layer in one tensor, and {lost} was quantized by itself",
                remedy="choose `compressed-tensors`, or `ignore` the experts",
                field="/target/format",
            )

    def left_out(self) -> list[str]:
        """What of the format is not in the weights."""
        description = self.state.description
        rounds = any(scheme.activations for scheme in description.schemes)
        return ["activations are"] * rounds + ["the KV cache is"] * bool(description.kv_cache)


def _stored_dtype(model: Path) -> torch.dtype:
    config = json.loads((model / "config.json").read_text())
    config = config.get("text_config", config) if "dtype" not in config else config
    name = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    return {"float32": torch.float32, "float16": torch.float16}.get(name, torch.bfloat16)
