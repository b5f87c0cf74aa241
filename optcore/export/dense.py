"""A plain checkpoint that holds the quantized weights' values: any engine runs it, to measure a format it lacks."""

from typing import TYPE_CHECKING, ClassVar, Literal

from optcore.export.base import Export
from optcore.schemes import KV_CACHE_PRESETS, PRESETS

if TYPE_CHECKING:
    from optcore.run import Run


class Dense(Export):
    """The dequantized weights in the model's own type: the size of the source, the accuracy of the format's weights.

    Rounding of activations and of the KV cache happens while a model runs, so it is not part of the result.
    """

    title: ClassVar[str] = "dequantized checkpoint"
    schemes: ClassVar[frozenset[str]] = frozenset(PRESETS)
    kv_caches: ClassVar[frozenset[str]] = frozenset(KV_CACHE_PRESETS)

    format: Literal["dense"] = "dense"

    def write(self, run: "Run") -> None:
        """Write every weight's decoded value, then read them back and compare."""
        from optcore.export.dense_writer import DenseLayout
        from optcore.export.layout_writer import write_layout
        from optcore.streaming.quantized import QuantizedCheckpoint

        layout = DenseLayout(QuantizedCheckpoint(run.checkpoint), run.checkpoint)
        if left_out := layout.left_out():
            run.notice(f"this target holds rounded weights only; {' and '.join(left_out)} not rounded")
        write_layout(run, layout)
