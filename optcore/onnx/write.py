"""A calibrated state as an ONNX graph."""

from typing import TYPE_CHECKING

from optcore.errors import RecipeError

if TYPE_CHECKING:
    from optcore.export.onnx import Onnx
    from optcore.run import Run


def write_onnx(run: "Run", export: "Onnx") -> None:
    """Write the graph and what belongs to it to `run.out`: of a generator with its KV cache, of an encoder without."""
    if run.task == "text-generation":
        raise RecipeError("ONNX is not written yet", remedy="choose another target", field="/target/format")
    from optcore.onnx.encoder import write_encoder

    write_encoder(run, export)
