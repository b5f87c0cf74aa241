"""A quantized checkpoint between stages: the dense weights as they were, and beside them what was made of them.

The folder of the dense model gets `quantization.json` and one `quantized-00003.safetensors` for each decoder layer (and
`quantized-outside.safetensors` for the rest). These hold, under the checkpoint's own names, every tensor of the
quantized model: codes and scales in the compressed-tensors layout, all others in their final form. Training can go on
from the dense weights; an export links the files or lays them out anew. `importance.safetensors`, where text was
measured, is no part of the model (`optcore.importance`).
"""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field

from optcore.frozen import Frozen
from optcore.schemes import KV_CACHE_PRESETS, PRESETS, KvCacheName, QuantArgs, Scheme, SchemeName

DESCRIPTION = "quantization.json"
OUTSIDE = "quantized-outside.safetensors"


def layer_file(index: int) -> str:
    """Name of the file of a decoder layer."""
    return f"quantized-{index:05d}.safetensors"


def also_folder(folder: Path, scheme: str) -> Path:
    """Where a pass that made several formats puts the others than the first."""
    return folder / "also" / scheme


class QuantizedLinear(Frozen):
    """One quantized linear layer."""

    scheme: SchemeName
    digest: str
    """SHA-256 of the float32 weight that the pass simulated: what the stored bytes must decode to."""
    loss: float | None = None
    """tr(dW H dW^T) over tr(W H W^T): the share of the output's energy that rounding lost. None without calibration."""
    tokens: int | None = None
    """Calibration tokens that reached it."""
    input_amax: float | None = None
    """Largest magnitude of its input in the original model; None without calibration."""
    fallback: str = ""
    """Why a weaker method was used than the recipe asked for."""


class QuantizedLayer(Frozen):
    """What was done to one decoder layer."""

    file: str
    linears: dict[str, QuantizedLinear]
    """By module name in the checkpoint."""
    changed: tuple[str, ...] = ()
    """Tensors that are not quantized but differ from the dense checkpoint's, such as norms that took a scale."""
    attention: str = ""
    """Name of the attention module whose keys and values are quantized; empty where none is."""


class Quantization(Frozen):
    """The description of a quantized checkpoint."""

    version: Literal[2] = 2
    layers: tuple[QuantizedLayer, ...]
    ignored: tuple[str, ...]
    """Matrices left in high precision."""
    tables: dict[str, QuantizedLinear] = Field(default={})
    """Quantized embeddings and heads by module name in the checkpoint, their codes in the file of the rest; a tied
    head has none of its own."""
    kv_cache: KvCacheName | None = None
    kv_rotate: bool = False
    """Queries and keys are rotated by a Hadamard matrix before keys are rounded."""
    activation_search: bool = False
    """Activation scales are chosen at run time by least squared error."""
    searched: bool = True
    """Whether anything better than plain maximum scales and rounding to nearest was used, besides training."""
    trained: bool = False
    """Whether codes or scales were trained since: the weights are others than the dense ones."""

    @cached_property
    def linears(self) -> dict[str, QuantizedLinear]:
        """Every quantized linear layer, in the order of the model."""
        return {name: linear for layer in self.layers for name, linear in layer.linears.items()}

    @cached_property
    def matrices(self) -> dict[str, QuantizedLinear]:
        """Everything that has codes: the linear layers, then the tables."""
        return self.linears | self.tables

    @cached_property
    def files(self) -> tuple[str, ...]:
        """The files that hold the quantized model."""
        return (*(layer.file for layer in self.layers), OUTSIDE)

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the quantized linear layers."""
        return tuple(self.linears)

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        """The number formats in it, the most used first."""
        names = [linear.scheme for linear in self.matrices.values()]
        return tuple(PRESETS[name] for name in sorted(set(names), key=lambda name: (-names.count(name), name)))

    @property
    def attentions(self) -> tuple[str, ...]:
        """Attention modules whose keys and values are quantized."""
        return tuple(layer.attention for layer in self.layers if layer.attention)

    @property
    def kv_preset(self) -> QuantArgs | None:
        """The number format of the KV cache."""
        return KV_CACHE_PRESETS[self.kv_cache] if self.kv_cache else None

    def modules_of(self, scheme: str) -> list[str]:
        """Names of the linear layers in one format."""
        return [name for name, linear in self.linears.items() if linear.scheme == scheme]

    def save(self, folder: Path) -> None:
        """Write the description into a checkpoint folder."""
        (folder / DESCRIPTION).write_text(self.model_dump_json(indent=2) + "\n")


def load_quantization(folder: Path) -> Quantization | None:
    """Read the description; None for a checkpoint that is not quantized."""
    path = folder / DESCRIPTION
    return Quantization.model_validate_json(path.read_text()) if path.exists() else None


def quantized_files(folder: Path) -> Iterable[Path]:
    """The files of a quantized checkpoint that are not the dense model's."""
    return sorted(folder.glob("quantized-*.safetensors"))
