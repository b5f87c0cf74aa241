"""The engine as two child processes: `fetch`, which may use the Hub, then `run`, which holds no credential."""

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGTERM
from typing import IO

from pydantic import ValidationError

from lathe.errors import LatheError
from lathe.local.tether import tethered
from optcore.errors import Failure
from optcore.events import AnyEvent, RecipeResolved, RunFailed, parse_event
from optcore.recipe import Recipe, recipe_from
from optcore.references import BUILT_IN

GRACE_seconds = 10.0
TAIL_bytes = 4000
CREDENTIALS = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "LATHE_API_KEY",
    "LATHE_SECRET_KEY",
    "LATHE_OLD_SECRET_KEYS",
    "LATHE_SIGNING_KEY",
    "LATHE_WEBHOOK_SECRET",
)
VARIABLE = "LATHE_ENGINE_COMMAND"


def engine_command() -> list[str]:
    """The program, before its verb and arguments."""
    return shlex.split(os.environ.get(VARIABLE, "")) or [sys.executable, "-m", "optcore"]


class EngineRun:
    """One run. Read `events` to the end; then `failure` says whether it went well."""

    def __init__(self, recipe: Recipe, out: Path, work: Path, *, verbose: bool) -> None:
        self.failure: Failure | None = None
        self.last_words = ""
        """The end of the engine's log, once it failed."""
        self._recipe, self._out, self._work = recipe, str(out), str(work)
        self._verbose = verbose

    def events(self) -> Iterator[AnyEvent]:
        """What the engine says, as it says it."""
        with tempfile.TemporaryDirectory(prefix="lathe-run-") as folder:
            if _needs_the_hub(self._recipe):
                yield from self._step("fetch", [], Path(folder), dict(os.environ))
            if self.failure is None:
                without = {name: value for name, value in os.environ.items() if name not in CREDENTIALS}
                yield from self._step("run", ["--out", self._out], Path(folder), without)

    def _step(self, verb: str, more: list[str], folder: Path, environment: dict[str, str]) -> Iterator[AnyEvent]:
        path = folder / f"{verb}.yaml"
        path.write_text(self._recipe.to_yaml(), encoding="utf-8")
        command = [*engine_command(), verb, str(path), "--work", self._work, *more]
        with tempfile.TemporaryFile() as log:
            with _started(command, environment, None if self._verbose else log) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    if event := _event(line):
                        self._remember(event)
                        yield event
            if process.returncode != 0:
                self.last_words = _end_of(log)
                if self.failure is None:
                    raise _crashed(process.returncode, self.last_words)

    def _remember(self, event: AnyEvent) -> None:
        if isinstance(event, RunFailed):
            self.failure = event.failure
        elif isinstance(event, RecipeResolved):  # what was fetched is what is run, also when a branch has moved on
            self._recipe = recipe_from(event.recipe)


def _needs_the_hub(recipe: Recipe) -> bool:
    calibration = recipe.calibration
    local_data = calibration.path is not None or calibration.dataset == BUILT_IN
    return recipe.model.id is not None or not local_data


@contextmanager
def _started(
    command: list[str], environment: dict[str, str], log: IO[bytes] | None
) -> "Iterator[subprocess.Popen[bytes]]":
    """A child in its own session: a Ctrl-C reaches us only, and we end it in order."""
    process = subprocess.Popen(
        tethered(command, folder=Path.cwd(), death_signal=SIGTERM),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        env=environment,
        start_new_session=True,
    )
    with process:
        try:
            yield process
            process.wait()
        finally:
            _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE_seconds)
        except subprocess.TimeoutExpired:
            process.kill()


def _event(line: bytes) -> AnyEvent | None:
    try:
        return parse_event(line)
    except ValidationError:  # a library that prints; the engine's own words are events
        return None


def _end_of(log: IO[bytes]) -> str:
    log.seek(0, os.SEEK_END)
    log.seek(max(0, log.tell() - TAIL_bytes))
    return log.read().decode(errors="replace").strip()


def _crashed(returncode: int, last_words: str) -> LatheError:
    how = f"exit code {returncode}" if returncode >= 0 else f"signal {-returncode}"
    return LatheError(
        f"the engine crashed with {how}" + (f":\n{last_words}" if last_words else ""),
        remedy="run the same command again: finished stages are kept; --verbose shows the whole log",
    )
