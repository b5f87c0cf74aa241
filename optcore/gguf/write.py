"""A calibrated state as one GGUF file."""

from typing import TYPE_CHECKING

from optcore.errors import RecipeError

if TYPE_CHECKING:
    from optcore.export.gguf import Gguf
    from optcore.run import Run


def write_gguf(run: "Run", export: "Gguf") -> None:
    """Write `model.gguf` to `run.out`."""
    raise RecipeError("GGUF is not written yet", remedy="choose another target", field="/target/format")
