"""Jobs of a service, for the sync client."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lathe import _protocol as protocol
from lathe._retry import worth_retrying
from lathe._stream import Cursor, L
from lathe._waiting import Patience, POLL_seconds, successful
from lathe._wire import Wire
from lathe.errors import ConnectionFailed, LatheError
from lathe.models import Job, JobEvent, JobStatus, LogChunk, MetricCurve
from optcore.recipe import Recipe, load_recipe

StrPath = str | os.PathLike[str]


class Jobs:
    """Make, watch and stop jobs."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def create(self, recipe: Recipe | Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Queue a job. With the same `idempotency_key` and recipe the same job is answered, not a second one.

        Raises `RecipeRefused`, whose `field` points into the recipe.
        """
        return self._wire.send(protocol.create_job(recipe, idempotency_key))

    def create_from_file(self, path: StrPath, *, idempotency_key: str | None = None) -> Job:
        """Queue the recipe of a YAML file. Raises `optcore.errors.RecipeError` before anything is sent."""
        return self.create(load_recipe(Path(path)), idempotency_key=idempotency_key)

    def get(self, job_id: str, *, expand: Sequence[str] = ()) -> Job:
        """The job as it is now; with `expand`, its `attempts` and `artifacts` too."""
        return self._wire.send(protocol.get_job(job_id, {"expand": list(expand) or None}))

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
        return self._wire.each(protocol.list_jobs, params)

    def cancel(self, job_id: str) -> Job:
        """Ask a job to stop; `wait` tells when it has. Raises `Conflict` when it ended otherwise."""
        return self._wire.send(protocol.change_job(job_id, "cancel"))

    def pause(self, job_id: str) -> Job:
        """Set a job aside and free its worker; `resume` goes on behind its last finished layer."""
        return self._wire.send(protocol.change_job(job_id, "pause"))

    def resume(self, job_id: str) -> Job:
        """Queue a paused job again."""
        return self._wire.send(protocol.change_job(job_id, "resume"))

    def retry(self, job_id: str) -> Job:
        """Begin a new run of a job that failed or was cancelled; finished stages are not run again."""
        return self._wire.send(protocol.change_job(job_id, "retry"))

    def publish(self, job_id: str, place: Mapping[str, Any] | None = None) -> Job:
        """Push a finished job to the Hub: once more, or to `place` (a recipe's `publish`)."""
        return self._wire.send(protocol.change_job(job_id, "publish", place))

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

    def wait(
        self,
        job_id: str,
        *,
        timeout: float | None = None,
        poll_interval: float = POLL_seconds,
        on_event: Callable[[JobEvent], None] | None = None,
    ) -> Job:
        """The job once it has ended, however it ended. Seconds; raises `WaitTimeout` when it runs longer."""
        patience, cursor = Patience(timeout, poll_interval), Cursor(JobEvent)
        while True:
            job = self.get(job_id)
            if on_event:
                for event in self._history(job_id, cursor):
                    on_event(event)
            if job.is_terminal:
                return job
            time.sleep(patience.pause(job))

    def result(self, job_id: str, *, timeout: float | None = None) -> Job:
        """The job once it has succeeded. Raises `JobFailed` with the typed `failure`, or `JobCancelled`."""
        return successful(self.wait(job_id, timeout=timeout))

    def report(self, job_id: str) -> dict[str, Any]:
        """The measured before and after: `measurements`, stages, versions."""
        return self._wire.send(protocol.get_report(job_id))

    def recipe(self, job_id: str) -> str:
        """The recipe as YAML, pinned once the worker knows the commits."""
        return self._wire.send(protocol.get_recipe(job_id))

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
            except ConnectionFailed as error:
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
