"""The recipe that a command is given: a file or standard input, and another model in its place."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from optcore.errors import RecipeError
from optcore.recipe import MAX_RECIPE_bytes, Recipe, load_document, recipe_from
from optcore.yaml_text import read_document

RecipePath = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe in YAML; `-` for standard input.", allow_dash=True)
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="ID_OR_PATH",
        help="Another model in the recipe's place: `org/name` or `org/name@revision` of the Hub, or a folder where the "
        "engine runs, which begins with `/` or `.`.",
    ),
]
STDIN = Path("-")


def read_recipe(path: Path, model: str | None = None) -> Recipe:
    """Of a file or of standard input. Raises `RecipeError`."""
    document = _from_stdin() if path == STDIN else load_document(path)
    return recipe_from(with_model(document, model))


def with_model(document: Any, model: str | None) -> Any:
    """The document with another model; what is no mapping, or stays as it is, is for others to judge."""
    return {**document, "model": _reference(model)} if model is not None and isinstance(document, dict) else document


def _reference(model: str) -> dict[str, str]:
    """By its letters alone: a folder here says nothing of the machine that runs the engine."""
    if model.startswith(("/", ".")):
        return {"path": model}
    name, at, revision = model.partition("@")
    return {"id": name, "revision": revision} if at else {"id": name}


def _from_stdin() -> Any:
    raw = sys.stdin.buffer.read(MAX_RECIPE_bytes + 1)
    if len(raw) > MAX_RECIPE_bytes:
        raise RecipeError(f"standard input is larger than a recipe can be ({MAX_RECIPE_bytes} bytes)")
    try:
        return read_document(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RecipeError(f"cannot read standard input: {error}", remedy="pipe a YAML recipe to it") from error
