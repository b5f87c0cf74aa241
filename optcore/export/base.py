"""What an export is: a target format on disk and its writer."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from optcore.errors import RecipeError
from optcore.extras import how_to_install
from optcore.frozen import Frozen
from optcore.report import Task
from optcore.schemes import Scheme

if TYPE_CHECKING:
    from optcore.run import Run

EngineName = Literal["vllm", "sglang", "tensorrt-llm", "transformers", "llama.cpp", "onnxruntime-genai", "onnxruntime"]


class Export(Frozen):
    """A format that engines load."""

    title: ClassVar[str]
    schemes: ClassVar[frozenset[str]]
    """Names of the schemes it can hold."""
    sized_schemes: ClassVar[frozenset[str]] = frozenset()
    """Names of those that it can hold for linear layers of some sizes only: see `check_linear`."""
    encoder_schemes: ClassVar[frozenset[str] | None] = None
    """Names of those that it can hold for an encoder, where these are others."""
    kv_caches: ClassVar[frozenset[str]] = frozenset()
    """Names of the KV cache formats it can hold."""
    keeps_conditions: ClassVar[bool] = True
    """Whether its files have `conditional.json` beside them, which says how a model is to be run."""
    takes_unquantized: ClassVar[bool] = False
    """Whether it can hold a model in which nothing was quantized."""

    packages: ClassVar[tuple[str, ...]] = ()
    """Those that only this target is written by. What it holds depends on their versions."""
    generator_packages: ClassVar[tuple[str, ...]] = ()
    """Further ones that a model that generates is written by."""
    extra: ClassVar[str] = "engine"
    """The extra of ours that installs them."""

    engine: EngineName | None = None
    """An engine that must load the result. A recipe whose number formats it cannot load in this target is refused
    before any work, with the nearest target that it can."""

    def packages_for(self, task: Task) -> tuple[str, ...]:
        """What a model for this task is written by."""
        return (*self.packages, *(self.generator_packages if task == "text-generation" else ()))

    def check_packages(self, task: Task, place: str) -> None:
        """Raises `RecipeError`, before any work, where a package is missing that the writer imports.

        `place` is where the recipe names the target, a JSON Pointer.
        """
        if missing := [name for name in self.packages_for(task) if not find_spec(name.replace("-", "_"))]:
            raise RecipeError(
                f"{self.title} is written by {', '.join(missing)}, not installed here",
                remedy=f"{how_to_install(self.extra)}, or choose another target",
                field=f"{place}/format",
            )

    def check_model(self, folder: Path, task: Task, place: str) -> None:
        """Raises `RecipeError`, before any work, for a model that cannot be written in this format.

        `place` is where the recipe names the target, a JSON Pointer.
        """

    def check_linear(self, name: str, scheme: Scheme, shape_NK: tuple[int, int], place: str) -> None:
        """Raises `RecipeError`, before any work, for a linear layer of N outputs and K inputs that cannot be written in
        one of `sized_schemes`.

        `name` is the layer's in the checkpoint, `place` where the recipe names the target, a JSON Pointer.
        """

    def write(self, run: "Run") -> None:
        """Read `run.checkpoint`, write the target's files to `run.out` and prove them by decoding them again."""
        raise NotImplementedError
