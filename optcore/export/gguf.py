"""The GGUF file that llama.cpp loads, and what is built on it."""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from optcore.export.base import Export
from optcore.report import Task
from optcore.schemes import GGML_FORMATS, Scheme

if TYPE_CHECKING:
    from optcore.run import Run


class Gguf(Export):
    """One `model.gguf` with weights, tokenizer and chat template; formats of other engines become the block format
    that holds their codes, and their scales but for what float16 lacks: minimums of `int4_asym`, tiny scales."""

    title: ClassVar[str] = "GGUF"
    schemes: ClassVar[frozenset[str]] = GGML_FORMATS | {
        *("int4", "int4_g64", "int4_g32", "int4_asym", "int4_asym_g64", "int4_asym_g32"),
        *("int8_w8a16", "mxfp4_w4a16", "nvfp4_w4a16"),
    }
    sized_schemes: ClassVar[frozenset[str]] = frozenset({"int8_w8a16", "nvfp4_w4a16"})
    keeps_conditions: ClassVar[bool] = False
    takes_unquantized: ClassVar[bool] = True
    packages: ClassVar[tuple[str, ...]] = ("gguf",)

    format: Literal["gguf"] = "gguf"
    plain: Literal["f32", "f16", "bf16"] = "f16"
    """Type of the matrices that nothing quantized; vectors are float32."""

    def check_model(self, folder: Path, task: Task, place: str) -> None:
        """Refuse architectures and tokenizers that are not mapped to GGUF's names."""
        from optcore.gguf.fitness import check_model

        check_model(folder, task, place)

    def check_linear(self, name: str, scheme: Scheme, shape_NK: tuple[int, int], place: str) -> None:
        """Refuse rows that ggml's blocks do not divide: they are longer than NVFP4's groups, and INT8 has none."""
        from optcore.gguf.layout import check_blocks

        check_blocks(f"{name}.weight", scheme.name, shape_NK[1], f"{place}/format")

    def write(self, run: "Run") -> None:
        """Lay every tensor out in its block format, then decode the file and compare it with the simulated weights."""
        from optcore.gguf.write import write_gguf

        write_gguf(run, self)
