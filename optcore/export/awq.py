"""The AutoAWQ `gemm` checkpoint: 4-bit groups with zero points, packed along the outputs."""

from typing import TYPE_CHECKING, ClassVar, Literal

from optcore.export.base import Export
from optcore.export.sizes import check_words
from optcore.schemes import Scheme

if TYPE_CHECKING:
    from optcore.run import Run


class Awq(Export):
    """AutoAWQ's gemm layout of INT4, with or without zero points; scales become float16."""

    title: ClassVar[str] = "AutoAWQ gemm"
    schemes: ClassVar[frozenset[str]] = frozenset(
        {"int4", "int4_g64", "int4_g32", "int4_asym", "int4_asym_g64", "int4_asym_g32"}
    )
    sized_schemes: ClassVar[frozenset[str]] = schemes

    format: Literal["awq"] = "awq"

    def check_linear(self, name: str, scheme: Scheme, shape_NK: tuple[int, int], place: str) -> None:
        """Refuse sides that are no whole number of words."""
        check_words(name, scheme, shape_NK, place)

    def write(self, run: "Run") -> None:
        """Pack shard by shard, then decode every weight and compare it with the simulated one."""
        from optcore.export.awq_writer import AwqLayout
        from optcore.export.layout_writer import write_layout
        from optcore.streaming.quantized import QuantizedCheckpoint

        write_layout(run, AwqLayout(QuantizedCheckpoint(run.checkpoint)))
