"""Which models have a place in a GGUF file."""

from pathlib import Path

from optcore.errors import RecipeError
from optcore.report import Task


def check_model(folder: Path, task: Task, place: str) -> None:
    """Raises `RecipeError` for a model that llama.cpp would not know."""
    if task != "text-generation":
        raise RecipeError(
            f"GGUF is written for models that generate text, and {folder.name} is one for {task}",
            remedy="use `target: {format: onnx}`, which ONNX Runtime runs",
            field=f"{place}/format",
        )
