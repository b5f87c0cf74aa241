"""A plain checkpoint: the weights as the chain left them, or the values of quantized ones, for any engine."""

from typing import TYPE_CHECKING, ClassVar, Literal

from optcore.errors import ExportMismatch
from optcore.export.base import Export
from optcore.links import link_checkpoint, link_forms, same_weights
from optcore.quantization import load_quantization
from optcore.schemes import KV_CACHE_PRESETS, PRESETS

if TYPE_CHECKING:
    from optcore.run import Run


class Dense(Export):
    """Plain weights in the model's own type: of a chain that quantizes, the dequantized ones, with the accuracy of the
    format's weights, to measure a format that an engine lacks.

    Rounding of activations and of the KV cache happens while a model runs, so it is not part of the result.
    """

    title: ClassVar[str] = "dense checkpoint"
    schemes: ClassVar[frozenset[str]] = frozenset(PRESETS)
    kv_caches: ClassVar[frozenset[str]] = frozenset(KV_CACHE_PRESETS)
    takes_unquantized: ClassVar[bool] = True

    format: Literal["dense"] = "dense"

    def write(self, run: "Run") -> None:
        """Write every weight's decoded value, then read them back and compare; link weights that are dense already."""
        if load_quantization(run.checkpoint) is None:
            _link(run)
            return
        from optcore.export.dense_writer import DenseLayout
        from optcore.export.layout_writer import write_layout
        from optcore.streaming.quantized import QuantizedCheckpoint

        layout = DenseLayout(QuantizedCheckpoint(run.checkpoint), run.checkpoint)
        if left_out := layout.left_out():
            run.notice(f"this target holds rounded weights only; {' and '.join(left_out)} not rounded")
        write_layout(run, layout)


def _link(run: "Run") -> None:
    link_checkpoint(run.checkpoint, run.out)
    link_forms(run.checkpoint, run.out)
    if not same_weights(run.checkpoint, run.out):
        raise ExportMismatch("the weights in the target are not those of the checkpoint")
