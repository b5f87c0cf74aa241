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
from optcore.events import AnyEvent, RunFailed, parse_event

GRACE_seconds = 10.0
TAIL_bytes = 4000
CREDENTIALS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "LATHE_API_KEY", "LATHE_SECRET_KEY", "LATHE_WEBHOOK_SECRET")
VARIABLE = "LATHE_ENGINE_COMMAND"


def engine_command() -> list[str]:
    """The program, before its verb and arguments."""
    return shlex.split(os.environ.get(VARIABLE, "")) or [sys.executable, "-m", "optcore"]


class EngineRun:
    """One run. Read `events` to the end; then `failure` says whether it went well."""

    def __init__(self, recipe: Path, out: Path, work: Path, *, verbose: bool) -> None:
        self.failure: Failure | None = None
        self._recipe, self._out, self._work = str(recipe), str(out), str(work)
        self._verbose = verbose

    def events(self) -> Iterator[AnyEvent]:
        """What the engine says, as it says it."""
        yield from self._step(["fetch", self._recipe, "--work", self._work], dict(os.environ))
        if self.failure is None:
            without = {name: value for name, value in os.environ.items() if name not in CREDENTIALS}
            yield from self._step(["run", self._recipe, "--work", self._work, "--out", self._out], without)

    def _step(self, arguments: list[str], environment: dict[str, str]) -> Iterator[AnyEvent]:
        with tempfile.TemporaryFile() as log:
            with _started([*engine_command(), *arguments], environment, None if self._verbose else log) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    if event := _event(line):
                        if isinstance(event, RunFailed):
                            self.failure = event.failure
                        yield event
            if process.returncode != 0 and self.failure is None:
                raise _crashed(process.returncode, log)


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


def _crashed(returncode: int, log: IO[bytes]) -> LatheError:
    log.seek(0, os.SEEK_END)
    log.seek(max(0, log.tell() - TAIL_bytes))
    last_words = log.read().decode(errors="replace").strip()
    how = f"exit code {returncode}" if returncode >= 0 else f"signal {-returncode}"
    return LatheError(
        f"the engine crashed with {how}" + (f":\n{last_words}" if last_words else ""),
        remedy="run the same command again: finished stages are kept; --verbose shows the whole log",
    )
