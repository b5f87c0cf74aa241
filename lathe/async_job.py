"""A job as the async client answers it: what it was when it was asked for, and what can be done about it."""

from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import PrivateAttr

from lathe import models
from lathe._bond import Bond
from lathe._waiting import POLL_seconds
from lathe.job import StrPath
from lathe.models import Artifact, JobEvent, LogChunk, MetricCurve
from lathe.report import Measurements, Report

if TYPE_CHECKING:
    from lathe._async_jobs import AsyncJobs


class AsyncJob(models.Job):
    """One run of a recipe. Its fields never change: the methods that change the job answer it as it is then."""

    _bond: "Bond[AsyncJobs]" = PrivateAttr(default_factory=Bond)

    @classmethod
    def of(cls, job: models.Job, jobs: "AsyncJobs") -> "AsyncJob":
        """The same job, tied to a client."""
        bound = cls.model_construct(job.model_fields_set, **dict(job))
        bound._bond = Bond(jobs)
        return bound

    @property
    def _jobs(self) -> "AsyncJobs":
        return self._bond.service

    async def refresh(self) -> "AsyncJob":
        """The job as it is now."""
        return await self._jobs.get(self.id)

    async def wait(
        self,
        *,
        timeout: float | None = None,
        poll_interval: float = POLL_seconds,
        on_event: Callable[[JobEvent], None] | None = None,
        progress: bool = False,
    ) -> "AsyncJob":
        """The job once it has ended, however it ended; with `progress`, its stages are shown meanwhile.

        Seconds; raises `WaitTimeout` when it runs longer.
        """
        return await self._jobs.wait(
            self.id, timeout=timeout, poll_interval=poll_interval, on_event=on_event, progress=progress
        )

    async def result(self, *, timeout: float | None = None, progress: bool = False) -> "AsyncJob":
        """The job once it has succeeded. Raises `JobFailed` with the typed `failure`, or `JobCancelled`."""
        return await self._jobs.result(self.id, timeout=timeout, progress=progress)

    async def watch(self) -> "AsyncJob":
        """Show the stages as they run, then the before and after; the job as it ended."""
        return await self._jobs.watch(self.id)

    def events(self, *, after: int = 0, stream: bool = False) -> AsyncIterator[JobEvent]:
        """The history above sequence number `after`; with `stream`, also what comes, until the job ends."""
        return self._jobs.events(self.id, after=after, stream=stream)

    def logs(self, *, after: int = 0, follow: bool = False) -> AsyncIterator[LogChunk]:
        """The engine's log in pieces above number `after`; with `follow`, also what comes, until the job ends."""
        return self._jobs.logs(self.id, after=after, follow=follow)

    async def metrics(
        self, *, stage: str | None = None, name: str | None = None, points: int = 200
    ) -> tuple[MetricCurve, ...]:
        """What was measured along the way, each curve thinned to `points`."""
        return await self._jobs.metrics(self.id, stage=stage, name=name, points=points)

    async def cancel(self) -> "AsyncJob":
        """Ask the job to stop; `wait` tells when it has. Raises `Conflict` when it ended otherwise."""
        return await self._jobs.cancel(self.id)

    async def pause(self) -> "AsyncJob":
        """Set the job aside and free its worker; `resume` goes on behind its last finished layer."""
        return await self._jobs.pause(self.id)

    async def resume(self) -> "AsyncJob":
        """Queue the paused job again."""
        return await self._jobs.resume(self.id)

    async def retry(self) -> "AsyncJob":
        """Begin a new run of a job that failed or was cancelled; finished stages are not run again."""
        return await self._jobs.retry(self.id)

    async def push_to_hub(self, place: Mapping[str, Any] | None = None) -> "AsyncJob":
        """Push the finished job to the Hub: once more, or to `place` (a recipe's `publish`)."""
        return await self._jobs.publish(self.id, place)

    async def delete(self) -> None:
        """Forget a job that is over, with its history and its files."""
        await self._jobs.delete(self.id)

    async def report(self) -> Report:
        """The measured before and after. Raises `NotFound` while there is none."""
        return await self._jobs.report(self.id)

    async def measurements(self) -> Measurements:
        """The report's table, a row a measurement."""
        return (await self.report()).measurements

    async def pinned_recipe(self) -> str:
        """The recipe as YAML, with commits and digests once the worker knows them."""
        return await self._jobs.recipe(self.id)

    def files(self) -> AsyncIterator[Artifact]:
        """The files of the result, each with its size and SHA-256."""
        return self._jobs.artifacts.list(self.id)

    async def download(
        self, folder: StrPath, *, on_progress: Callable[[Artifact, int], None] | None = None, progress: bool = False
    ) -> tuple[Path, ...]:
        """Fetch every file into `folder`; what an earlier call left there is gone on with."""
        return await self._jobs.artifacts.download(self.id, folder, on_progress=on_progress, progress=progress)
