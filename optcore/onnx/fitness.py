"""Which models can be written as an ONNX graph."""

from pathlib import Path

from optcore.conditional import check_unconditional
from optcore.report import Task


def check_model(folder: Path, task: Task, place: str) -> None:
    """Raises `RecipeError` for a model that is to be run under conditions, or that generates and whose graph nobody
    builds.

    Of encoders torch's exporter takes whatever can be streamed, and each graph is run before it is handed out.
    """
    check_unconditional(folder, "ONNX Runtime", f"{place}/format")
    if task == "text-generation":
        from optcore.onnx.generator_fitness import check_generator

        check_generator(folder, place)
