"""Jobs of a service, for the sync client."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from lathe import models
from lathe._artifacts import Artifacts
from lathe._protocol import jobs as protocol
from lathe._protocol.call import Call
from lathe._protocol.jobs import AnyRecipe
from lathe._retry import worth_retrying
from lathe._stream import Cursor, L
from lathe._waiting import Patience, POLL_seconds, successful
from lathe._wire import Wire
from lathe.display.screen import show
from lathe.display.watching import OnEvent, events_shown, stages_shown
from lathe.errors import LatheError
from lathe.estimate_models import Estimate
from lathe.job import Job, StrPath
from lathe.models import JobEvent, JobStatus, LogChunk, MetricCurve
from lathe.report import Report
from optcore.recipe import load_recipe

JobIds = list[str] | tuple[str, ...] | set[str]


class Jobs:
    """Make, watch and stop jobs."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.artifacts = Artifacts(wire)

    def estimate(self, recipe: AnyRecipe) -> Estimate:
        """What a job would take, and where it fits; nothing is queued. Raises `RecipeRefused`."""
        return self._wire.send(protocol.estimate_job(recipe))

    def create(self, recipe: AnyRecipe, *, idempotency_key: str | None = None) -> Job:
        """Queue a job. With the same `idempotency_key` and recipe the same job is answered, not a second one.

        Raises `RecipeRefused`, whose `field` points into the recipe.
        """
        return self._job(protocol.create_job(recipe, idempotency_key))

    def create_from_file(self, path: StrPath, *, idempotency_key: str | None = None) -> Job:
        """Queue the recipe of a YAML file. Raises `optcore.errors.RecipeError` before anything is sent."""
        return self.create(load_recipe(Path(path)), idempotency_key=idempotency_key)

    def get(self, job_id: str, *, expand: Sequence[str] = ()) -> Job:
        """The job as it is now; with `expand`, its `attempts` and `artifacts` too."""
        return self._job(protocol.get_job(job_id, {"expand": list(expand) or None}))

    def list(
        self,
        *,
        status: Sequence[JobStatus] = (),
        technique: str | None = None,
        model: str | None = None,
        name_contains: str | None = None,
        metadata: Mapping[str, str] | None = None,
        oldest_first: bool = False,
        after: str | None = None,
        page_size: int = 20,
    ) -> Iterator[Job]:
        """Your jobs, newest first; further pages are asked for while you iterate. `model` is an id or a path, whole."""
        params = {
            "status": list(status) or None,
            "technique": technique,
            "model": model,
            "name_contains": name_contains,
            "metadata": [f"{key}={value}" for key, value in (metadata or {}).items()] or None,
            "order": "asc" if oldest_first else None,
            "after": after,
            "limit": page_size,
        }
        return (Job.of(job, self) for job in self._wire.each(protocol.list_jobs, params))

    def cancel(self, job_id: str) -> Job:
        """Ask a job to stop; `wait` tells when it has. Raises `Conflict` when it ended otherwise."""
        return self._job(protocol.change_job(job_id, "cancel"))

    def pause(self, job_id: str) -> Job:
        """Set a job aside and free its worker; `resume` goes on behind its last finished layer."""
        return self._job(protocol.change_job(job_id, "pause"))

    def resume(self, job_id: str) -> Job:
        """Queue a paused job again."""
        return self._job(protocol.change_job(job_id, "resume"))

    def retry(self, job_id: str) -> Job:
        """Begin a new run of a job that failed or was cancelled; finished stages are not run again."""
        return self._job(protocol.change_job(job_id, "retry"))

    def publish(self, job_id: str, place: Mapping[str, Any] | None = None) -> Job:
        """Push a finished job to the Hub: once more, or to `place` (a recipe's `publish`)."""
        return self._job(protocol.change_job(job_id, "publish", place))

    def delete(self, job_id: str) -> None:
        """Forget a job that is over, with its history and its files."""
        self._wire.send(protocol.delete_job(job_id))

    def metrics(
        self, job_id: str, *, stage: str | None = None, name: str | None = None, points: int = 200
    ) -> tuple[MetricCurve, ...]:
        """What was measured along the way, each curve thinned to `points`."""
        params = {"stage": stage, "name": name, "points": points}
        return (self._wire.send(protocol.get_metrics(job_id, params))).data

    def logs(self, job_id: str, *, after: int = 0, follow: bool = False) -> Iterator[LogChunk]:
        """The engine's log in pieces above number `after`; with `follow`, also what comes, until the job ends."""
        cursor = Cursor(LogChunk, after)
        return self._follow(job_id, cursor) if follow else self._history(job_id, cursor)

    def events(self, job_id: str, *, after: int = 0, stream: bool = False) -> Iterator[JobEvent]:
        """The job's history above sequence number `after`; with `stream`, also what comes, until the job ends."""
        cursor = Cursor(JobEvent, after)
        return self._follow(job_id, cursor) if stream else self._history(job_id, cursor)

    @overload
    def wait(
        self,
        job_id: str,
        *,
        timeout: float | None = None,
        poll_interval: float = POLL_seconds,
        on_event: Callable[[JobEvent], None] | None = None,
        progress: bool = False,
    ) -> Job: ...
    @overload
    def wait(
        self, job_id: JobIds, *, timeout: float | None = None, poll_interval: float = POLL_seconds
    ) -> tuple[Job, ...]: ...
    def wait(
        self,
        job_id: str | JobIds,
        *,
        timeout: float | None = None,
        poll_interval: float = POLL_seconds,
        on_event: Callable[[JobEvent], None] | None = None,
        progress: bool = False,
    ) -> Job | tuple[Job, ...]:
        """The job once it has ended, however it ended; of several ids, all of them once the last one has.

        With `progress`, its stages are shown meanwhile. Seconds; raises `WaitTimeout` when it takes longer.
        """
        patience = Patience(timeout, poll_interval)
        if not isinstance(job_id, str):
            return tuple([self._wait(each, patience) for each in job_id])
        with events_shown(progress, on_event) as hear:
            return self._wait(job_id, patience, hear)

    def _wait(self, job_id: str, patience: Patience, hear: OnEvent | None = None) -> Job:
        cursor = Cursor(JobEvent)
        while True:
            try:
                job = self.get(job_id)
                if hear:
                    for event in self._history(job_id, cursor):
                        hear(event)
            except LatheError as error:
                pause = patience.pause_after(error)
            else:
                if job.is_terminal:
                    return job
                pause = patience.pause(job)
            time.sleep(pause)

    def result(self, job_id: str, *, timeout: float | None = None, progress: bool = False) -> Job:
        """The job once it has succeeded. Raises `JobFailed` with the typed `failure`, or `JobCancelled`."""
        return successful(self.wait(job_id, timeout=timeout, progress=progress))

    def watch(self, job_id: str) -> Job:
        """Show the stages as they run, then the before and after; the job as it ended."""
        with stages_shown() as hear:
            for event in self.events(job_id, stream=True):
                hear(event.type, event.data, event.at.timestamp())
        job = self.get(job_id)
        if job.status == "succeeded":
            show(self.report(job_id))
        return job

    def report(self, job_id: str) -> Report:
        """The measured before and after: `measurements`, stages, versions. Raises `NotFound` while there is none."""
        return self._wire.send(protocol.get_report(job_id))

    def recipe(self, job_id: str) -> str:
        """The recipe as YAML, pinned once the worker knows the commits."""
        return self._wire.send(protocol.get_recipe(job_id))

    def _job(self, call: Call[models.Job]) -> Job:
        return Job.of(self._wire.send(call), self)

    def _history(self, job_id: str, cursor: Cursor[L]) -> Iterator[L]:
        while True:
            page = self._wire.send(protocol.list_lines(job_id, cursor))
            for event in page.data:
                if cursor.accept(event):
                    yield event
            if not page.has_more or not page.data:
                return

    def _follow(self, job_id: str, cursor: Cursor[L]) -> Iterator[L]:
        while True:
            yield from self._listen(job_id, cursor)
            if cursor.ended:
                return
            # The stream broke off. The job's own status is the authority on whether there is more to hear.
            try:
                job = self.get(job_id)
            except LatheError as error:
                time.sleep(cursor.dropped(error))
                continue
            if job.is_terminal:
                yield from self._history(job_id, cursor)
                return
            time.sleep(cursor.dropped())

    def _listen(self, job_id: str, cursor: Cursor[L]) -> Iterator[L]:
        cursor.begin()
        try:
            with self._wire.stream(protocol.stream_lines(job_id, cursor)) as response:
                for line in response.iter_lines():
                    if event := cursor.feed(line):
                        yield event
        except LatheError as error:
            if not worth_retrying(error):
                raise
