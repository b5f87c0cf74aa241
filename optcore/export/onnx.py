"""The ONNX model that ONNX Runtime runs: on CPUs, phones and in browsers."""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from optcore.export.base import Export
from optcore.report import Task

if TYPE_CHECKING:
    from optcore.run import Run


class Onnx(Export):
    """A graph with its weights. A model that generates gets a KV cache and `genai_config.json`, and holds the very
    codes and scales that were found before; an encoder may round its activations too."""

    title: ClassVar[str] = "ONNX"
    schemes: ClassVar[frozenset[str]] = frozenset(
        {
            *("int4", "int4_g64", "int4_g32", "int4_asym", "int4_asym_g64", "int4_asym_g32"),
            *("int8_w8a16", "int8", "int8_static"),
        }
    )
    encoder_schemes: ClassVar[frozenset[str] | None] = frozenset({"int8", "int8_static", "int8_w8a16"})
    keeps_conditions: ClassVar[bool] = False
    takes_unquantized: ClassVar[bool] = True
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime")
    generator_packages: ClassVar[tuple[str, ...]] = ("onnxruntime-genai",)
    extra: ClassVar[str] = "onnx"

    format: Literal["onnx"] = "onnx"
    plain: Literal["fp32", "fp16"] = "fp32"
    """Type of what nothing quantized, and of the arithmetic. CPUs compute in float32."""

    def check_model(self, folder: Path, task: Task, place: str) -> None:
        """Refuse architectures that no builder knows."""
        from optcore.onnx.fitness import check_model

        check_model(folder, task, place)

    def write(self, run: "Run") -> None:
        """Write the graph, then decode its weights and compare them with the simulated ones."""
        from optcore.onnx.write import write_onnx

        write_onnx(run, self)
