"""A job as the sync client answers it: what it was when it was asked for, and what can be done about it."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import PrivateAttr

from lathe import models
from lathe._bond import Bond
from lathe._waiting import POLL_seconds
from lathe.models import Artifact, JobEvent, LogChunk, MetricCurve
from lathe.report import Measurements, Report

if TYPE_CHECKING:
    from lathe._jobs import Jobs

StrPath = str | os.PathLike[str]


class Job(models.Job):
    """One run of a recipe. Its fields never change: the methods that change the job answer it as it is then."""

    _bond: "Bond[Jobs]" = PrivateAttr(default_factory=Bond)

    @classmethod
    def of(cls, job: models.Job, jobs: "Jobs") -> "Job":
        """The same job, tied to a client."""
        bound = cls.model_construct(job.model_fields_set, **dict(job))
        bound._bond = Bond(jobs)
        return bound

    @property
    def _jobs(self) -> "Jobs":
        return self._bond.service

    def refresh(self) -> "Job":
        """The job as it is now."""
        return self._jobs.get(self.id)

    def wait(
        self,
        *,
        timeout: float | None = None,
        poll_interval: float = POLL_seconds,
        on_event: Callable[[JobEvent], None] | None = None,
        progress: bool = False,
    ) -> "Job":
        """The job once it has ended, however it ended; with `progress`, its stages are shown meanwhile.

        Seconds; raises `WaitTimeout` when it runs longer.
        """
        return self._jobs.wait(
            self.id, timeout=timeout, poll_interval=poll_interval, on_event=on_event, progress=progress
        )

    def result(self, *, timeout: float | None = None, progress: bool = False) -> "Job":
        """The job once it has succeeded. Raises `JobFailed` with the typed `failure`, or `JobCancelled`."""
        return self._jobs.result(self.id, timeout=timeout, progress=progress)

    def watch(self) -> "Job":
        """Show the stages as they run, then the before and after; the job as it ended."""
        return self._jobs.watch(self.id)

    def events(self, *, after: int = 0, stream: bool = False) -> Iterator[JobEvent]:
        """The history above sequence number `after`; with `stream`, also what comes, until the job ends."""
        return self._jobs.events(self.id, after=after, stream=stream)

    def logs(self, *, after: int = 0, follow: bool = False) -> Iterator[LogChunk]:
        """The engine's log in pieces above number `after`; with `follow`, also what comes, until the job ends."""
        return self._jobs.logs(self.id, after=after, follow=follow)

    def metrics(
        self, *, stage: str | None = None, name: str | None = None, points: int = 200
    ) -> tuple[MetricCurve, ...]:
        """What was measured along the way, each curve thinned to `points`."""
        return self._jobs.metrics(self.id, stage=stage, name=name, points=points)

    def cancel(self) -> "Job":
        """Ask the job to stop; `wait` tells when it has. Raises `Conflict` when it ended otherwise."""
        return self._jobs.cancel(self.id)

    def pause(self) -> "Job":
        """Set the job aside and free its worker; `resume` goes on behind its last finished layer."""
        return self._jobs.pause(self.id)

    def resume(self) -> "Job":
        """Queue the paused job again."""
        return self._jobs.resume(self.id)

    def retry(self) -> "Job":
        """Begin a new run of a job that failed or was cancelled; finished stages are not run again."""
        return self._jobs.retry(self.id)

    def push_to_hub(self, place: Mapping[str, Any] | None = None) -> "Job":
        """Push the finished job to the Hub: once more, or to `place` (a recipe's `publish`)."""
        return self._jobs.publish(self.id, place)

    def delete(self) -> None:
        """Forget a job that is over, with its history and its files."""
        self._jobs.delete(self.id)

    def report(self) -> Report:
        """The measured before and after. Raises `NotFound` while there is none."""
        return self._jobs.report(self.id)

    def measurements(self) -> Measurements:
        """The report's table, a row a measurement."""
        return self.report().measurements

    def pinned_recipe(self) -> str:
        """The recipe as YAML, with commits and digests once the worker knows them."""
        return self._jobs.recipe(self.id)

    def files(self) -> Iterator[Artifact]:
        """The files of the result, each with its size and SHA-256."""
        return self._jobs.artifacts.list(self.id)

    def download(
        self, folder: StrPath, *, on_progress: Callable[[Artifact, int], None] | None = None, progress: bool = False
    ) -> tuple[Path, ...]:
        """Fetch every file into `folder`; what an earlier call left there is gone on with."""
        return self._jobs.artifacts.download(self.id, folder, on_progress=on_progress, progress=progress)
