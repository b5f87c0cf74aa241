"""How fast source and result generate, and in how much memory, in one loader on this machine."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from optcore.evaluate.base import Evaluator
from optcore.report import Measurement, Task

if TYPE_CHECKING:
    from optcore.run import Run


WHOLE_room = 3
"""Times the source's weights that must be free: loading needs the file and the unpacked tensors at once."""


class Throughput(Evaluator):
    """Tokens a second and peak memory of source and exported result, each loaded by transformers in a fresh process. On
    a GPU also how much faster the products of its linear layers are by this engine's kernels than in bfloat16, for 1
    and 16 tokens: INT4, NVFP4 and `fp8_dynamic`."""

    title: ClassVar[str] = "Throughput in transformers"
    tasks: ClassVar[frozenset[Task]] = frozenset({"text-generation", "fill-mask"})
    reads_export: ClassVar[bool] = True

    evaluator: Literal["throughput"] = "throughput"
    prompt_tokens: int = Field(default=128, ge=1, le=131_072)
    new_tokens: int = Field(default=32, ge=1, le=8192)

    def measure(self, run: "Run") -> list[Measurement]:
        """Load and generate; skipped with a notice where the model does not fit into memory."""
        from optcore.evaluate.generation import measure_throughput
        from optcore.evaluate.linears import measure_linears

        return [*measure_throughput(run, self), *measure_linears(run)]
