"""What a quantized checkpoint is between stages: high-precision weights, plus this description and the scales.

`quantization.json` says which linear layers have which format; `scales.safetensors` holds their scales under the
checkpoint's own names (`<module>.weight_scale`, `.weight_global_scale`, `.input_scale`, `.input_global_scale`,
`<attention>.k_scale`, `.v_scale`). Training can go on from the weights; an export packs them once, at the end.
"""

from pathlib import Path
from typing import Literal

from optcore.frozen import Frozen
from optcore.schemes import KV_CACHE_PRESETS, PRESETS, KvCacheName, QuantArgs, Scheme, SchemeName

DESCRIPTION = "quantization.json"
SCALES = "scales.safetensors"


class Quantization(Frozen):
    """The description of a quantized checkpoint."""

    version: Literal[1] = 1
    scheme: SchemeName
    scale_search: Literal["max", "mse"]
    kv_cache: KvCacheName | None
    modules: tuple[str, ...]
    """Quantized linear layers, by their names in the checkpoint."""
    ignored: tuple[str, ...]
    """Linear layers left in high precision."""
    attentions: tuple[str, ...] = ()
    """Attention modules whose keys and values have scales."""

    @property
    def preset(self) -> Scheme:
        """The number format of the linear layers."""
        return PRESETS[self.scheme]

    @property
    def kv_preset(self) -> QuantArgs | None:
        """The number format of the KV cache."""
        return KV_CACHE_PRESETS[self.kv_cache] if self.kv_cache else None

    def save(self, folder: Path) -> None:
        """Write the description into a checkpoint folder."""
        (folder / DESCRIPTION).write_text(self.model_dump_json(indent=2) + "\n")


def load_quantization(folder: Path) -> Quantization | None:
    """Read the description; None for a checkpoint that is not quantized."""
    path = folder / DESCRIPTION
    return Quantization.model_validate_json(path.read_text()) if path.exists() else None
