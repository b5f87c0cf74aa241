"""A calibrated state as an ONNX graph."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optcore.export.onnx import Onnx
    from optcore.run import Run


def write_onnx(run: "Run", export: "Onnx") -> None:
    """Write the graph and what belongs to it to `run.out`: of a generator with its KV cache, of an encoder without."""
    if run.task == "text-generation":
        from optcore.onnx.generator import write_generator

        write_generator(run, export)
    else:
        from optcore.onnx.encoder import write_encoder

        write_encoder(run, export)
