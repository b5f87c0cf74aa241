"""The compressed-tensors checkpoint that vLLM, SGLang and transformers load."""

from typing import TYPE_CHECKING, ClassVar, Literal

from optcore.export.base import Export
from optcore.schemes import GGML_FORMATS, PRESETS

if TYPE_CHECKING:
    from optcore.run import Run


class CompressedTensors(Export):
    """Packed weights and scales in safetensors, described by `quantization_config` in `config.json`."""

    title: ClassVar[str] = "compressed-tensors"
    schemes: ClassVar[frozenset[str]] = frozenset(PRESETS) - GGML_FORMATS - {"llm_int8", "nf4"}
    kv_caches: ClassVar[frozenset[str]] = frozenset({"fp8", "fp8_head"})

    format: Literal["compressed-tensors"] = "compressed-tensors"

    def write(self, run: "Run") -> None:
        """Link the quantized files, then decode every packed tensor and compare it with the simulated weight."""
        from optcore.export.compressed_tensors_writer import write_checkpoint

        write_checkpoint(run)
