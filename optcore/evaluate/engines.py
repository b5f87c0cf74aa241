"""What the engines that serve a result make of it: size, load time, speed, memory, and distance from the source."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from optcore.evaluate.base import Evaluator
from optcore.report import Measurement, Task

if TYPE_CHECKING:
    from optcore.run import Run


class Engines(Evaluator):
    """Loads the result in the engine that serves it on a CPU (llama.cpp, ONNX Runtime, transformers) and the source in
    transformers, each in a process of its own: load time, tokens a second, peak memory, KL to the source and top-1
    agreement. A recipe with several targets, or one for `gguf` or `onnx`, has it by default, unless `evaluate` is
    empty."""

    title: ClassVar[str] = "Engines"
    tasks: ClassVar[frozenset[Task]] = frozenset({"text-generation", "fill-mask", "text-classification"})
    reads_export: ClassVar[bool] = True

    evaluator: Literal["engines"] = "engines"
    prompt_tokens: int = Field(default=128, ge=1, le=131_072)
    """Tokens of the prompt; cut to what the model can hold."""
    new_tokens: int = Field(default=32, ge=1, le=8192)
    """Written behind it, greedily; cut likewise."""
    samples: int = Field(default=8, ge=1, le=1000)
    """Windows of text to compare predictions on; fewer where a large vocabulary would make them too much."""
    sequence_length: int = Field(default=128, ge=2, le=8192)
    """Tokens a window; cut to what the model can hold."""
    source: bool = True
    """Measure the source too; a run with several results does so once."""
    time_limit_seconds: int = Field(default=600, ge=1, le=86_400)
    """For one engine, its start and loading among them; one that takes longer is left out with a notice, as
    one that runs out of memory is, and measured again when the recipe is run again."""

    def measure(self, run: "Run") -> list[Measurement]:
        """No rows of the before/after table: what each engine did is left in the run's results."""
        from optcore.evaluate.served import measure_engines

        run.results["engine_runs"] = [found.model_dump() for found in measure_engines(run, self)]
        return []
