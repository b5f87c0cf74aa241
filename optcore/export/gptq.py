"""The GPTQ checkpoint, version 1: symmetric groups, packed along the inputs."""

from typing import TYPE_CHECKING, ClassVar, Literal

from optcore.export.base import Export
from optcore.export.sizes import check_words
from optcore.schemes import Scheme

if TYPE_CHECKING:
    from optcore.run import Run


class GptqFormat(Export):
    """The GPTQ layout of symmetric INT4 and INT8, whatever found the codes; scales become float16.

    Only what every reader agrees on is written: version 1, `sym`, no `desc_act`. With zero points it is ambiguous (a
    zero point of 0 is stored as -1, which readers take for 0 or for 16), so `awq` is the target for those.
    """

    title: ClassVar[str] = "GPTQ"
    schemes: ClassVar[frozenset[str]] = frozenset({"int4", "int4_g64", "int4_g32", "int8_w8a16"})
    sized_schemes: ClassVar[frozenset[str]] = schemes

    format: Literal["gptq"] = "gptq"

    def check_linear(self, name: str, scheme: Scheme, shape_NK: tuple[int, int], place: str) -> None:
        """Refuse sides that are no whole number of words."""
        check_words(name, scheme, shape_NK, place)

    def write(self, run: "Run") -> None:
        """Pack shard by shard, then decode every weight and compare it with the simulated one."""
        from optcore.export.gptq_writer import GptqLayout
        from optcore.export.layout_writer import write_layout
        from optcore.streaming.quantized import QuantizedCheckpoint

        write_layout(run, GptqLayout(QuantizedCheckpoint(run.checkpoint)))
