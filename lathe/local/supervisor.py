"""The thread that keeps programs and servers alive, and ends the programs in order."""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from lathe.local.errors import LocalServerError
from lathe.local.program import Program

LOOK_seconds = 0.2

log = logging.getLogger(__name__)


class Supervisor:
    """`with Supervisor(programs, revive_servers):` runs them. One thread does it all, because a child dies with the
    thread that started it: nothing of ours can outlive this one."""

    def __init__(
        self, programs: Sequence[Program], revive_servers: Callable[[], list[str]], say: Callable[[str], None]
    ) -> None:
        self.programs = tuple(programs)
        self._revive_servers = revive_servers
        self._say = say
        self._stopped = threading.Event()
        self._started: Future[None] = Future()
        self._thread = threading.Thread(name="lathe-supervisor", target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._started.result()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _serve(self) -> None:
        try:
            self._start_all()
            while not self._stopped.wait(LOOK_seconds):
                self._look()
        finally:
            for program in self.programs:
                program.ask_to_end()
            for program in self.programs:
                program.end()

    def _start_all(self) -> None:
        try:
            for program in self.programs:
                program.start()
        except OSError as error:
            self._started.set_exception(error)
        else:
            self._started.set_result(None)

    def _look(self) -> None:
        try:
            for name in self._revive_servers():
                self._say(f"{name} had ended and was started again")
            for program in self.programs:
                if program.revive():
                    self._say(f"{program.name} ended and will be started again; its log is {program.log}")
        except (LocalServerError, OSError) as error:
            self._say(f"could not start a program again: {error}")
        except Exception:  # the outermost loop: giving up here would end every program
            log.exception("supervisor stumbled")
