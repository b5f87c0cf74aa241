"""Commands that need no service: run the engine in child processes, check a recipe, print its schema."""

import json
import os
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from lathe.cli.engine_process import VARIABLE, EngineRun
from lathe.cli.group import explain
from lathe.cli.output import console, errors, print_json, print_measurements, printable_lines
from lathe.cli.recipe_file import ModelName, RecipePath, read_recipe
from lathe.cli.session import AsJson, home
from lathe.display.watching import stages_shown
from lathe.errors import LatheError
from optcore.extras import how_to_install
from optcore.plan import check
from optcore.recipe import Recipe
from optcore.signing import check_key, sign

ENGINE_MODULES = ("torch", "transformers", "safetensors")
OURS = ("internal", "infrastructure")
"""Kinds of failure that a recipe is not to blame for, so that the engine's log is what helps."""


def run(
    recipe: RecipePath,
    out: Annotated[Path, typer.Option(help="Folder to write the result to; must not exist.")],
    model: ModelName = None,
    work: Annotated[Path | None, typer.Option(help="Cache of finished stages; LATHE_HOME/work when absent.")] = None,
    key: Annotated[
        Path | None, typer.Option("--sign", metavar="KEY", help="Sign the result with this private key, a PEM file.")
    ] = None,
    as_json: AsJson = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the engine's own log.")] = False,
) -> None:
    """Run a recipe on this machine, without a service. Finished stages are not run again."""
    checked = _checked(recipe, model)
    _need_engine()
    if key:
        check_key(key)
    engine = EngineRun(checked, out.absolute(), (work or home() / "work").absolute(), verbose=verbose)
    if as_json:
        for event in engine.events():
            print_json(event)
    else:
        with stages_shown() as hear:
            for event in engine.events():
                hear(event.event, event.model_dump(mode="json"), time.time())
    if engine.failure:
        if engine.failure.kind in OURS and engine.last_words:
            errors.print(printable_lines(engine.last_words), soft_wrap=True)
        if not as_json:
            explain(engine.failure)
        raise typer.Exit(1)
    if key:
        sign(out, key)
    if not as_json:
        print_measurements(_report(out))
        errors.print(f"written to {out}", markup=False, soft_wrap=True)


def validate(recipe: RecipePath, model: ModelName = None, as_json: AsJson = False) -> None:
    """Check a recipe and say what it means, without running it."""
    checked = _checked(recipe, model)
    if as_json:
        print_json(checked)
    else:
        console.print(f"valid; digest {checked.digest}", markup=False, highlight=False, soft_wrap=True)


def schema() -> None:
    """Print the JSON schema of a recipe."""
    console.out(json.dumps(Recipe.model_json_schema(), indent=2), highlight=False)


def _checked(path: Path, model: str | None) -> Recipe:
    recipe = read_recipe(path, model)
    check(recipe)
    return recipe


def _need_engine() -> None:
    missing = [name for name in ENGINE_MODULES if find_spec(name) is None]
    if missing and VARIABLE not in os.environ:
        raise LatheError(
            f"the engine is not installed here: no {', '.join(missing)}",
            remedy=f"{how_to_install('engine')}, or send the recipe to a service with `lathe submit`",
        )


def _report(out: Path) -> dict[str, object]:
    try:
        document = json.loads((out / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LatheError(f"the engine ended well but left no report: {error}") from error
    return document if isinstance(document, dict) else {}
