"""Which models can be written as an ONNX graph."""

from pathlib import Path

from optcore.report import Task


def check_model(folder: Path, task: Task, place: str) -> None:
    """Raises `RecipeError` for a model whose graph nobody builds."""
