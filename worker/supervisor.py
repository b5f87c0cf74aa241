"""Watches one engine process to its end: journals its events, carries out orders, and says how it ended."""

import logging
import math
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from api.errors import Fenced
from optcore.errors import Failure
from optcore.events import AnyEvent, RecipeResolved, RunFailed, RunFinished, StageStarted
from worker.attempt_trace import StageTrace
from worker.confinement import Confinement, Memory
from worker.engine_log import EngineLog
from worker.engine_process import EngineProcess, Exited, Inbox, Said
from worker.exits import Death, Stall, explain, stalled
from worker.heartbeat import UNREACHABLE, Heartbeat, Order
from worker.journal import Journal
from worker.lookout import Lookout
from worker.settings import WorkerSettings
from worker.watchdog import Watchdog, last_frames

log = logging.getLogger(__name__)

LOOK_seconds = 1.0

Record = Callable[[Sequence[AnyEvent]], None]


@dataclass(frozen=True)
class Completed:
    """The engine exited with status 0."""

    digest: str | None
    """Of the artifact, when it wrote one."""
    recipe: dict[str, object] | None
    """The pinned recipe, when it said one."""


@dataclass(frozen=True)
class Failed:
    """The engine said why, or died and left us to say it."""

    failure: Failure


Ending = Completed | Failed | Order


class Interrupted(Exception):
    """Work that follows the engine's has to stop."""

    def __init__(self, order: Order) -> None:
        super().__init__(order.name)
        self.order = order


class Supervisor:
    """Runs engine processes one after another for one claim.

    `record` writes events, and `record_log` what the engine wrote on standard error, under the claim's fence.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        inbox: Inbox,
        heartbeat: Heartbeat,
        record: Record,
        record_log: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._inbox = inbox
        self._heartbeat = heartbeat
        self._record = record
        self._record_log = record_log
        self._unwritten_log = ""
        self._journal = Journal()
        self._order: Order | None = None
        self._kill_at: float | None = None
        self._watchdog = Watchdog(settings.stall_seconds)
        self._stalled: Stall | None = None
        self._flush_at = 0.0

    def run(
        self, command: Sequence[str], environment: Mapping[str, str], engine_log: EngineLog, confinement: Confinement
    ) -> Ending:
        """Start the command, and return when nothing of it is left."""
        if self._order is not None:
            return self._order
        process = EngineProcess(
            command, environment=environment, engine_log=engine_log, inbox=self._inbox, confinement=confinement
        )

        def kill_when_cut_off() -> bool:
            if self.is_cut_off:
                process.kill()
            return self.is_cut_off

        try:
            # On a thread of its own, because this one may be waiting for a database that hangs.
            with Lookout("cut-off", kill_when_cut_off, period_seconds=LOOK_seconds), StageTrace() as trace:
                return self._watch(process, engine_log, confinement, trace)
        finally:
            process.kill()

    def _watch(
        self, process: EngineProcess, engine_log: EngineLog, confinement: Confinement, trace: StageTrace
    ) -> Ending:
        said, self._watchdog = _Story(), Watchdog(self._settings.stall_seconds)
        while True:
            message = self._next(min(self._settings.flush_seconds, LOOK_seconds))
            match message:
                case Said(event):
                    said.hear(event)
                    trace.hear(event)
                    self._watchdog.hear(event)
                    self._journal.add(event)
                case Order() as order:
                    self._obey(order, process)
                case Exited() as exited:
                    self._flush(engine_log)
                    return self._ending(exited, said, engine_log, confinement.memory(exited.peak_memory_bytes))
                case None if self._watchdog.has_lost_patience and self._stalled is None:
                    self._give_up(process)
            if time.monotonic() >= self._flush_at:
                self._flush(engine_log)
            confinement.look()
            self._enforce(process)

    @property
    def is_isolated(self) -> bool:
        """Whether the lease was not renewed for so long that we must not act on it."""
        return self._heartbeat.silence_seconds > self._settings.isolate_seconds

    @property
    def is_cut_off(self) -> bool:
        """Whether another worker must be presumed to have the job."""
        return self._heartbeat.silence_seconds > self._settings.partition_kill_seconds

    def wait(self, seconds: float) -> None:
        """Sleep between the steps of work that follows the engine's, but not past an order. Raises `Interrupted`."""
        until = time.monotonic() + seconds
        while self._order is None and not self.is_cut_off:
            left_seconds = until - time.monotonic()
            message = self._next(max(0.0, min(left_seconds, LOOK_seconds)))
            if isinstance(message, Order):
                self._order = message
            elif left_seconds <= 0:
                return
        raise Interrupted(self._order or Order.ABANDON)

    def _next(self, timeout_seconds: float) -> object:
        try:
            return self._inbox.get(timeout=timeout_seconds)
        except queue.Empty:
            return None

    def _obey(self, order: Order, process: EngineProcess) -> None:
        if self._order is not None and order <= self._order:
            return
        self._order = order
        grace = {
            Order.ABANDON: 0.0,
            Order.CANCEL: self._settings.cancel_grace_seconds,
            Order.TIME_OUT: self._settings.cancel_grace_seconds,
            Order.PAUSE: self._settings.cancel_grace_seconds,
            Order.RELEASE: self._settings.drain_grace_seconds,
        }[order]
        log.info("order %s", order.name)
        process.terminate()
        self._kill_at = time.monotonic() + grace

    def _give_up(self, process: EngineProcess) -> None:
        """The engine said nothing for too long: it may write where it is, and is killed."""
        self._stalled = Stall(self._watchdog.phase, self._watchdog.silent_seconds)
        log.warning("silent for %.0f s while %s", self._stalled.silent_seconds, self._stalled.phase)
        process.dump_stacks()
        self._kill_at = min(self._kill_at or math.inf, time.monotonic() + self._settings.stack_dump_seconds)

    def _enforce(self, process: EngineProcess) -> None:
        if self.is_cut_off:
            self._obey(Order.ABANDON, process)
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            process.kill()

    def _flush(self, engine_log: EngineLog) -> None:
        """Write what is new, as far as the database takes it; the rest waits for the next time."""
        self._flush_at = time.monotonic() + self._settings.flush_seconds
        self._unwritten_log += engine_log.take_news()
        if self._order is Order.ABANDON or self.is_isolated:
            return
        try:
            while len(self._journal):
                batch = self._journal.batch()
                self._record(batch)
                self._journal.written(len(batch))
            if self._unwritten_log:
                self._record_log(self._unwritten_log)
                self._unwritten_log = ""
        except Fenced:
            self._inbox.put(Order.ABANDON)
        except UNREACHABLE as error:
            log.warning("events not written yet: %s", type(error).__name__)

    def _ending(self, exited: Exited, said: "_Story", engine_log: EngineLog, memory: Memory) -> Ending:
        if self._order is Order.ABANDON or self.is_cut_off:
            return Order.ABANDON
        if exited.returncode == 0:
            return Completed(said.digest, said.recipe)
        if self._order is not None:
            return self._order
        if self._stalled is not None:
            return Failed(stalled(self._stalled, last_frames(engine_log.lines), said.stage))
        return Failed(explain(Death(exited.returncode, said.failure, said.stage, engine_log.tail(), memory)))


class _Story:
    """What the events of one process add up to."""

    def __init__(self) -> None:
        self.stage = ""
        self.digest: str | None = None
        self.recipe: dict[str, object] | None = None
        self.failure: Failure | None = None

    def hear(self, event: AnyEvent) -> None:
        match event:
            case StageStarted():
                self.stage = event.stage
            case RecipeResolved():
                self.recipe = event.recipe
            case RunFinished():
                self.digest = event.digest
            case RunFailed():
                self.failure = event.failure
