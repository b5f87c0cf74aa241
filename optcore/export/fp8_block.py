"""The `fp8` checkpoint that DeepSeek-V3 introduced: E4M3 weights with one scale for each 128 x 128 block."""

from typing import TYPE_CHECKING, ClassVar, Literal

from optcore.export.base import Export

if TYPE_CHECKING:
    from optcore.run import Run


class Fp8Block(Export):
    """DeepSeek's FP8 layout. Engines that read it round activations too, in groups of 128, as `fp8_block` says."""

    title: ClassVar[str] = "DeepSeek-style FP8"
    schemes: ClassVar[frozenset[str]] = frozenset({"fp8_block"})

    format: Literal["fp8"] = "fp8"

    def write(self, run: "Run") -> None:
        """Write E4M3 weights and float32 block scales, then decode every weight and compare bit for bit."""
        from optcore.export.fp8_block_writer import Fp8BlockLayout
        from optcore.export.layout_writer import write_layout
        from optcore.streaming.quantized import QuantizedCheckpoint

        write_layout(run, Fp8BlockLayout(QuantizedCheckpoint(run.checkpoint)))
