"""One job, from claim to end: claim -> fetch -> run -> collect -> finish, under a lease renewed all the while."""

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, assert_never

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from api import lifecycle, tracing
from api.errors import Fenced, ServiceError
from api.files import Bucket, Folder, name_of
from api.store import credentials, stage_costs
from optcore.errors import Failure, OptError
from optcore.events import AnyEvent
from optcore.recipe import recipe_from
from optcore.references import BUILT_IN
from optcore.signing import sign
from worker import drain
from worker.artifact import FinishedArtifact, collect
from worker.attempt_trace import told_of
from worker.cache import in_use
from worker.confinement import confined
from worker.context import Context
from worker.engine_environment import fetch_environment, run_environment
from worker.engine_log import EngineLog
from worker.engine_process import Inbox
from worker.exits import NO_LOSS
from worker.heartbeat import UNREACHABLE, Heartbeat, Order
from worker.lookout import Lookout
from worker.supervisor import Completed, Ending, Failed, Interrupted, Supervisor
from worker.upload import Upload

log = logging.getLogger(__name__)

AGAIN_seconds = 1.0
LOOK_seconds = 0.25


_busy = threading.Lock()


def run_next(context: Context) -> bool:
    """Take the job that is first in line, and see this attempt to its end; False when there is none for us.

    One at a time in a process: a call while another is at work does nothing. The job that it was about stays queued.
    """
    if not _busy.acquire(blocking=False):
        log.info("busy: what is queued stays so")
        return False
    try:
        context.staging.sweep()
        if trouble := context.fitness.trouble() or context.fitness.orphan():
            log.info("what is queued stays so: %s", trouble)
            return False
        with context.sessions.begin() as session:
            claim = lifecycle.claim_next(session, context.capacity, context.worker_id, context.settings.lease_seconds)
        if claim is None:
            log.info("nothing to claim")
            return False
        with told_of(claim):
            _Attempt(claim, context).run()
        return True
    finally:
        _busy.release()


class _Attempt:
    """A claim being worked on."""

    def __init__(self, claim: lifecycle.Claim, context: Context) -> None:
        self._claim = claim
        self._context = context
        self._settings = context.settings
        self._inbox: Inbox = Inbox()
        # Absolute, because the engine starts in a folder of its own.
        self._out = self._output_folder().absolute()
        self._folder = self._settings.attempt_dir(claim.job_id, claim.epoch).absolute()
        self._work = self._settings.work_dir(claim.project_id).absolute()
        self._heartbeat = Heartbeat(self._renew, period_seconds=self._settings.renew_seconds, inbox=self._inbox)
        self._supervisor = Supervisor(
            self._settings,
            inbox=self._inbox,
            heartbeat=self._heartbeat,
            record=self._record,
            record_log=self._record_log,
        )

    def run(self) -> None:
        log.info("attempt %d of %s begins, epoch %d", self._claim.attempt, self._claim.job_id, self._claim.epoch)
        with self._heartbeat, Lookout("drain", self._sees_drain, period_seconds=LOOK_seconds):
            self._settle(self._ending())
        if isinstance(self._context.store, Bucket):
            self._context.staging.clear(self._out)

    def _sees_drain(self) -> bool:
        if drain.is_on():
            self._inbox.put(Order.RELEASE)
        return drain.is_on()

    def _ending(self) -> Ending:
        try:
            return self._drive_engine()
        except OptError as error:
            return Failed(error.failure())
        except ServiceError as error:
            return Failed(Failure(kind="internal", code=error.code, message=error.message, remedy=error.remedy))
        except OSError as error:
            return Failed(
                Failure(
                    kind="infrastructure",
                    code="worker_disk",
                    message=f"the worker cannot start the engine: {error.strerror or error}",
                    remedy="look at the space and the permissions of LATHE_DATA_DIR, and at LATHE_ENGINE_COMMAND",
                    retryable=True,
                )
            )

    def _drive_engine(self) -> Ending:
        recipe = self._claim.resolved or self._claim.recipe
        token = self._hub_token()
        self._make_folders()
        with in_use(self._work), self._engine_log(token) as engine_log:
            if _needs_fetch(recipe):
                ending = self._step("fetch", recipe, self._rooted(fetch_environment(self._work, token)), engine_log)
                if not isinstance(ending, Completed):
                    return ending
                recipe = ending.recipe or recipe
            options = ("--out", str(self._out), *self._rates())
            return self._step("run", recipe, self._rooted(run_environment(self._work)), engine_log, *options)

    def _rates(self) -> tuple[str, ...]:
        """Names a file of what finished stages took, from which the engine foresees those of this job: it can do
        without."""
        path = self._folder / "rates.json"
        try:
            with self._context.sessions() as session:
                seen = [cost.model_dump() for cost in stage_costs.recent(session)]
            path.write_text(json.dumps(seen), encoding="utf-8")
        except (SQLAlchemyError, OSError) as error:
            log.warning("%s runs without what stages took before: %s", self._claim.job_id, type(error).__name__)
            return ()
        return ("--rates", str(path))

    def _engine_log(self, token: str | None) -> EngineLog:
        return EngineLog(
            self._folder / "engine.log",
            limit_bytes=self._settings.log_limit_bytes,
            news_limit_bytes=self._settings.log_stored_bytes,
            secrets=[token or ""],
        )

    def _step(
        self, verb: str, recipe: dict[str, Any], environment: dict[str, str], engine_log: EngineLog, *more: str
    ) -> Ending:
        path = self._folder / f"{verb}.yaml"
        path.write_text(recipe_from(recipe).to_yaml(), encoding="utf-8")
        words = [*self._settings.engine_command, verb, str(path), "--work", str(self._work), *more]
        with confined(self._settings, self._context.gpus, self._folder) as confinement:
            return self._supervisor.run(words, environment, engine_log, confinement)

    def _output_folder(self) -> Path:
        """In the store itself where that is a folder, else on this host until it is sent."""
        claim, store = self._claim, self._context.store
        if isinstance(store, Folder):
            return store.root / name_of(claim.job_id, claim.epoch)
        return self._context.staging.place(claim.job_id, claim.epoch, "output")

    def _make_folders(self) -> None:
        for folder in (self._work, self._work / "home", self._folder, self._out.parent):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.rmtree(self._out, ignore_errors=True)  # there is one only where the database was restored from before it

    def _rooted(self, environment: dict[str, str]) -> dict[str, str]:
        """The engine confines local paths once more, when it opens them; without roots it opens none."""
        roots = os.pathsep.join(str(root.absolute()) for root in self._settings.model_roots)
        return {**environment, "LATHE_MODEL_ROOTS": roots}

    def _hub_token(self) -> str | None:
        publish = self._claim.recipe.get("publish") or {}
        with self._context.sessions() as session:
            return credentials.token(
                session, self._settings.vault, self._claim.project_id, publish.get("credential", "default")
            )

    def _settle(self, ending: Ending) -> None:
        """Write how the attempt ended, as soon as the database lets us, unless the job is not ours any more."""
        claim = self._claim
        match ending:
            case Completed():
                self._finish()
            case Failed(failure) if failure.code in NO_LOSS:
                log.warning("%s handed back: %s", claim.job_id, failure.message)
                self._insist(lambda session: lifecycle.release(session, claim, failure))
            case Failed(failure):
                tracing.fail(failure.code)
                log.warning("%s failed: %s %s", claim.job_id, failure.code, failure.message)
                self._insist(lambda session: lifecycle.fail(session, claim, failure))
            case Order.CANCEL:
                self._insist(lambda session: lifecycle.cancelled(session, claim))
            case Order.TIME_OUT:
                self._insist(lambda session: lifecycle.out_of_time(session, claim))
            case Order.PAUSE:
                self._insist(lambda session: lifecycle.paused(session, claim))
            case Order.RELEASE:
                self._insist(lambda session: lifecycle.release(session, claim))
            case Order.ABANDON:
                log.warning("%s is not ours any more: epoch %d writes nothing", claim.job_id, claim.epoch)
            case _:
                assert_never(ending)

    def _finish(self) -> None:
        claim = self._claim
        try:
            if self._settings.signing_key:
                sign(self._out, self._settings.signing_key)
            artifact: FinishedArtifact = collect(self._out)
            self._hand_in(artifact)
        except Interrupted as stop:
            self._settle(stop.order)
        except OptError as error:
            self._settle(Failed(error.failure()))
        else:
            self._insist(lambda session: lifecycle.finish(session, claim, artifact.digest, artifact.files))

    def _hand_in(self, artifact: FinishedArtifact) -> None:
        """Send the files to where everybody can read them; in a folder they are there."""
        if isinstance(self._context.store, Bucket):
            Upload(
                self._context.store,
                name_of(self._claim.job_id, self._claim.epoch),
                patience_seconds=self._settings.upload_patience_seconds,
                wait=self._supervisor.wait,
            ).run(self._out, artifact.files)

    def _insist(self, write: Callable[[Session], None]) -> None:
        """Repeat one fenced write until the database took it, refused it, or was away for too long."""
        while not self._supervisor.is_cut_off:
            if not self._supervisor.is_isolated:
                try:
                    with self._context.sessions.begin() as session:
                        return write(session)
                except Fenced as error:
                    log.warning("refused: %s", error.message)
                    return
                except UNREACHABLE as error:
                    log.warning("the end of %s is not written yet: %s", self._claim.job_id, type(error).__name__)
            time.sleep(AGAIN_seconds)
        log.error("gave up on the database: another attempt finishes %s", self._claim.job_id)

    def _renew(self) -> Order | None:
        with self._context.sessions.begin() as session:
            renewal = lifecycle.renew(session, self._claim)
        if renewal.cancel_requested:
            return Order.CANCEL
        if renewal.out_of_time:
            return Order.TIME_OUT
        return Order.PAUSE if renewal.pause_requested else None

    def _record(self, events: Sequence[AnyEvent]) -> None:
        with self._context.sessions.begin() as session:
            lifecycle.record(session, self._claim, events)

    def _record_log(self, text: str) -> None:
        with self._context.sessions.begin() as session:
            lifecycle.record_log(session, self._claim, text)


def _needs_fetch(recipe: dict[str, Any]) -> bool:
    calibration = recipe.get("calibration") or {}
    local_data = calibration.get("path") is not None or calibration.get("dataset") == BUILT_IN
    return recipe["model"].get("id") is not None or not local_data
