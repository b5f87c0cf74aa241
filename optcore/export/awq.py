"""The AutoAWQ `gemm` checkpoint: 4-bit groups with zero points, packed along the outputs."""

from typing import TYPE_CHECKING, ClassVar, Literal

from optcore.export.base import Export

if TYPE_CHECKING:
    from optcore.run import Run


class Awq(Export):
    """AutoAWQ's gemm layout of INT4, with or without zero points; scales become float16."""

    title: ClassVar[str] = "AutoAWQ gemm"
    schemes: ClassVar[frozenset[str]] = frozenset(
        {"int4", "int4_g64", "int4_g32", "int4_asym", "int4_asym_g64", "int4_asym_g32"}
    )

    format: Literal["awq"] = "awq"

    def write(self, run: "Run") -> None:
        """Pack shard by shard, then decode every weight and compare it with the simulated one."""
        from optcore.export.awq_writer import AwqLayout
        from optcore.export.layout_writer import write_layout
        from optcore.streaming.quantized import QuantizedCheckpoint

        write_layout(run, AwqLayout(QuantizedCheckpoint(run.checkpoint)))
