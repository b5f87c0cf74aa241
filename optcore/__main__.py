"""The engine as a program: `python -m optcore run recipe.yaml --work DIR --out DIR`; events are JSON lines."""

import argparse
import faulthandler
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

from optcore.child import RESULTS
from optcore.errors import OptError, RecipeError, typed_error
from optcore.events import AnyEvent, RunFailed
from optcore.gang import LOST_PEER, has_lost_peer
from optcore.numerics import is_deterministic, settle_numerics
from optcore.recipe import Recipe, load_recipe

_SPEAKING = threading.Lock()
"""Of one event at a time: a stage works on one thread, and another one tells what memory it holds."""


def main() -> int:
    """Exit status 0: done. 1: a typed failure, said in a `run_failed` event."""
    options = _parser().parse_args()
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # a supervisor that hears nothing from us asks where we are
    try:
        options.command(options)
    except OptError as error:
        emit(RunFailed(failure=error.failure(getattr(error, "stage", ""))))
        return 1
    return 0


def emit(event: AnyEvent) -> None:
    """Print one event at once, so that whoever supervises us sees it now."""
    with _SPEAKING:
        sys.stdout.write(event.model_dump_json() + "\n")
        sys.stdout.flush()


def run(options: argparse.Namespace) -> None:
    """From recipe to artifact."""
    from optcore.engine import optimize
    from optcore.estimate.seen import load_rates_file

    try:
        seen = load_rates_file(options.rates) if options.rates else []
    except RecipeError as error:  # it says how long the work takes, and does none of it
        sys.stderr.write(f"{error}: this run goes on without\n")
        seen = []
    optimize(load_recipe(options.recipe), options.out, options.work, emit, seen)


def estimate(options: argparse.Namespace) -> None:
    """What a recipe will take on this machine, as one JSON document; nothing is downloaded."""
    from optcore.estimate.seen import load_rates_file
    from optcore.foresight import estimate_here

    seen = load_rates_file(options.rates) if options.rates else []
    sys.stdout.write(estimate_here(load_recipe(options.recipe), options.work, seen).model_dump_json() + "\n")


def fetch(options: argparse.Namespace) -> None:
    """Pin and download only; the pinned recipe is in the `recipe_resolved` event."""
    from optcore.engine import fetch as fetch_sources

    fetch_sources(load_recipe(options.recipe), options.work, emit)


def stage(options: argparse.Namespace) -> None:
    """One stage, told by a task file: what `run` starts for each step."""
    from optcore.memory_use import leave_gpu_peak, memory_told
    from optcore.stage import StageTask
    from optcore.stages import import_libraries, perform

    task = StageTask.model_validate_json(options.task.read_text())
    is_first = os.environ.get("RANK", "0") == "0"
    try:
        import_libraries(task)
        if "torch" in sys.modules:
            settle_numerics(deterministic=is_deterministic(os.environ))
        with memory_told(task.name, emit) if is_first else nullcontext():
            results = perform(task, emit if is_first else _unheard)
    except Exception as error:
        if has_lost_peer(error):
            _leave(LOST_PEER)
        if not isinstance(error, OptError):
            traceback.print_exc()
        emit(RunFailed(failure=typed_error(error, task.name).failure(task.name)))
        _leave(1)
    leave_gpu_peak(Path(task.scratch))
    if is_first:
        (options.task.parent / RESULTS).write_text(json.dumps(results))
    _leave(0)


def _unheard(_: AnyEvent) -> None:
    """Of the processes of a stage, the first one speaks for all."""


def _leave(status: int) -> NoReturn:
    """End; one of several at once: clean-up waits for others that are gone, and threads of theirs can abort it."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    raise SystemExit(status)


def validate(options: argparse.Namespace) -> None:
    """Read a recipe and print it with its defaults filled in."""
    from optcore.plan import check

    recipe = load_recipe(options.recipe)
    check(recipe)
    sys.stdout.write(recipe.to_yaml())


def schema(options: argparse.Namespace) -> None:
    """Print the recipe's JSON Schema."""
    sys.stdout.write(json.dumps(Recipe.model_json_schema(), indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m optcore", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for command in (run, fetch, estimate, validate):
        sub = _command(commands, command)
        sub.add_argument("recipe", type=Path)
        if command is not validate:
            sub.add_argument("--work", type=Path, required=True, help="cache of finished stages; may be shared")
        if command in (run, estimate):
            sub.add_argument("--rates", type=Path, help="JSON list of finished stages that estimates learn from")
        if command is run:
            sub.add_argument("--out", type=Path, required=True, help="folder of the artifact; must not exist")
    _command(commands, stage).add_argument("task", type=Path)
    _command(commands, schema)
    return parser


def _command(commands: Any, function: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
    sub: argparse.ArgumentParser = commands.add_parser(function.__name__, help=(function.__doc__ or "").splitlines()[0])
    sub.set_defaults(command=function)
    return sub


if __name__ == "__main__":
    sys.exit(main())
