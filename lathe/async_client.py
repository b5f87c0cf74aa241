"""The async client: `lathe.client` again, with `await`. What is sent and decided is in the modules that both share."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from lathe import _protocol as protocol
from lathe._connection import connection, stream_timeout
from lathe._protocol import Call, Params
from lathe._retry import RetryPolicy, worth_retrying
from lathe._stream import Cursor
from lathe._transfer import Transfer
from lathe._waiting import Patience, POLL_seconds, successful
from lathe.errors import ConnectionFailed, LatheError
from lathe.models import (
    Artifact,
    Credential,
    FormatInfo,
    Health,
    Job,
    JobEvent,
    JobStatus,
    Page,
    TechniqueInfo,
    WebhookEndpoint,
    WebhookEventType,
)
from optcore.recipe import Recipe, load_recipe

T = TypeVar("T")
StrPath = str | os.PathLike[str]


class _Wire:
    """One connection pool and one rule for sending again."""

    def __init__(self, http: httpx.AsyncClient, retry: RetryPolicy, timeout_seconds: float) -> None:
        self.http = http
        self.retry = retry
        self._stream_timeout = stream_timeout(timeout_seconds)

    async def send(self, call: Call[T]) -> T:
        """The value that the answer stands for, after as many attempts as the policy allows."""
        attempt = 0
        while True:
            try:
                return await self._send_once(call)
            except LatheError as error:
                if (delay := self.retry.delay(error, attempt)) is None:
                    raise
            await asyncio.sleep(delay)
            attempt += 1

    async def _send_once(self, call: Call[T]) -> T:
        with self._mapped():
            response = await self.http.request(**call.arguments())
        return protocol.conclude(call, response)

    @asynccontextmanager
    async def stream(self, call: Call[None]) -> AsyncIterator[httpx.Response]:
        """One attempt at an answer whose body is read bit by bit."""
        with self._mapped():
            async with self.http.stream(**call.arguments(), timeout=self._stream_timeout) as response:
                if not response.is_success:
                    await response.aread()
                    raise protocol.error_of(response)
                yield response

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            raise protocol.unreachable(self.http.base_url, error) from error

    async def each(self, page: Callable[[Params], Call[Page[T]]], params: Params) -> AsyncIterator[T]:
        """Every item of a list, asking for the next page when it is needed."""
        after = params.get("after")
        while True:
            answer = await self.send(page({**params, "after": after}))
            for item in answer.data:
                yield item
            if not answer.has_more or answer.last_id is None:
                return
            after = answer.last_id


class AsyncJobs:
    """Make, watch and stop jobs."""

    def __init__(self, wire: _Wire) -> None:
        self._wire = wire

    async def create(self, recipe: Recipe | Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Queue a job. With the same `idempotency_key` and recipe the same job is answered, not a second one.

        Raises `RecipeRefused`, whose `field` points into the recipe.
        """
        return await self._wire.send(protocol.create_job(recipe, idempotency_key))

    async def create_from_file(self, path: StrPath, *, idempotency_key: str | None = None) -> Job:
        """Queue the recipe of a YAML file. Raises `optcore.errors.RecipeError` before anything is sent."""
        return await self.create(load_recipe(Path(path)), idempotency_key=idempotency_key)

    async def get(self, job_id: str) -> Job:
        """The job as it is now."""
        return await self._wire.send(protocol.get_job(job_id))

    def list(
        self, *, status: Sequence[JobStatus] = (), after: str | None = None, page_size: int = 20
    ) -> AsyncIterator[Job]:
        """Your jobs, newest first; further pages are asked for while you iterate."""
        params = {"status": list(status) or None, "after": after, "limit": page_size}
        return self._wire.each(protocol.list_jobs, params)

    async def cancel(self, job_id: str) -> Job:
        """Ask a job to stop; `wait` tells when it has. Raises `Conflict` when it ended otherwise."""
        return await self._wire.send(protocol.cancel_job(job_id))

    def events(self, job_id: str, *, after: int = 0, stream: bool = False) -> AsyncIterator[JobEvent]:
        """The job's history above sequence number `after`; with `stream`, also what comes, until the job ends."""
        cursor = Cursor(after)
        return self._follow(job_id, cursor) if stream else self._history(job_id, cursor)

    async def wait(
        self,
        job_id: str,
        *,
        timeout: float | None = None,
        poll_interval: float = POLL_seconds,
        on_event: Callable[[JobEvent], None] | None = None,
    ) -> Job:
        """The job once it has ended, however it ended. Seconds; raises `WaitTimeout` when it runs longer."""
        patience, cursor = Patience(timeout, poll_interval), Cursor()
        while True:
            job = await self.get(job_id)
            if on_event:
                async for event in self._history(job_id, cursor):
                    on_event(event)
            if job.is_terminal:
                return job
            await asyncio.sleep(patience.pause(job))

    async def result(self, job_id: str, *, timeout: float | None = None) -> Job:
        """The job once it has succeeded. Raises `JobFailed` with the typed `failure`, or `JobCancelled`."""
        return successful(await self.wait(job_id, timeout=timeout))

    async def report(self, job_id: str) -> dict[str, Any]:
        """The measured before and after: `measurements`, stages, versions."""
        return await self._wire.send(protocol.get_report(job_id))

    async def recipe(self, job_id: str) -> str:
        """The recipe as YAML, pinned once the worker knows the commits."""
        return await self._wire.send(protocol.get_recipe(job_id))

    async def _history(self, job_id: str, cursor: Cursor) -> AsyncIterator[JobEvent]:
        while True:
            page = await self._wire.send(protocol.list_events(job_id, cursor.seq))
            for event in page.data:
                if cursor.accept(event):
                    yield event
            if not page.has_more or not page.data:
                return

    async def _follow(self, job_id: str, cursor: Cursor) -> AsyncIterator[JobEvent]:
        while True:
            async for event in self._listen(job_id, cursor):
                yield event
            if cursor.ended:
                return
            # The stream broke off. The job's own status is the authority on whether there is more to hear.
            try:
                job = await self.get(job_id)
            except ConnectionFailed as error:
                await asyncio.sleep(cursor.dropped(error))
                continue
            if job.is_terminal:
                async for event in self._history(job_id, cursor):
                    yield event
                return
            await asyncio.sleep(cursor.dropped())

    async def _listen(self, job_id: str, cursor: Cursor) -> AsyncIterator[JobEvent]:
        cursor.begin()
        try:
            async with self._wire.stream(protocol.stream_events(job_id, cursor.seq)) as response:
                async for line in response.aiter_lines():
                    if event := cursor.feed(line):
                        yield event
        except LatheError as error:
            if not worth_retrying(error):
                raise


class AsyncArtifacts:
    """The files of a finished job."""

    def __init__(self, wire: _Wire) -> None:
        self._wire = wire

    def list(self, job_id: str) -> AsyncIterator[Artifact]:
        """Every file with its size and SHA-256."""
        return self._wire.each(lambda params: protocol.list_artifacts(job_id, params), {})

    async def download(
        self, job_id: str, folder: StrPath, *, on_progress: Callable[[Artifact, int], None] | None = None
    ) -> tuple[Path, ...]:
        """Fetch every file into `folder`: resumed where it was interrupted, checked by SHA-256, renamed into place.

        `on_progress` gets the file and the bytes of it that are here. Raises `UnsafePath` or `DigestMismatch`; nothing
        with wrong bytes ever has its final name.
        """
        transfers = [Transfer(Path(folder), artifact) async for artifact in self.list(job_id)]
        return tuple([await self._fetch(job_id, transfer, on_progress or _quiet) for transfer in transfers])

    async def _fetch(self, job_id: str, transfer: Transfer, on_progress: Callable[[Artifact, int], None]) -> Path:
        if await asyncio.to_thread(transfer.is_here):
            on_progress(transfer.artifact, transfer.artifact.bytes)
            return transfer.target
        attempt = 0
        while True:
            try:
                if not transfer.is_complete():
                    await self._receive(job_id, transfer, on_progress)
                return await asyncio.to_thread(transfer.commit)
            except LatheError as error:
                if (delay := transfer.retry_delay(error, self._wire.retry, attempt)) is None:
                    raise
            await asyncio.sleep(delay)
            attempt += 1

    async def _receive(self, job_id: str, transfer: Transfer, on_progress: Callable[[Artifact, int], None]) -> None:
        call = protocol.get_artifact(job_id, transfer.artifact.path, transfer.offset())
        async with self._wire.stream(call) as response:
            with transfer.receiving(response):
                async for block in response.aiter_raw():
                    transfer.write(block)
                    on_progress(transfer.artifact, transfer.received_bytes)


class AsyncWebhookEndpoints:
    """Receivers of signed messages."""

    def __init__(self, wire: _Wire) -> None:
        self._wire = wire

    async def create(self, url: str, *, events: Sequence[WebhookEventType] | None = None) -> WebhookEndpoint:
        """Add a receiver. The answer's `secret` is shown this once: `lathe.unwrap` needs it."""
        return await self._wire.send(protocol.create_webhook_endpoint(url, events))

    def list(self) -> AsyncIterator[WebhookEndpoint]:
        """Your receivers, without their secrets."""
        return self._wire.each(protocol.list_webhook_endpoints, {})

    async def delete(self, endpoint_id: str) -> None:
        """Remove a receiver; messages on their way to it are dropped."""
        await self._wire.send(protocol.delete_webhook_endpoint(endpoint_id))


class AsyncCredentials:
    """Hub tokens that recipes refer to by name. They can be replaced and removed, never read."""

    def __init__(self, wire: _Wire) -> None:
        self._wire = wire

    async def put(self, name: str, token: str) -> Credential:
        """Store or replace a token."""
        return await self._wire.send(protocol.put_credential(name, token))

    def list(self) -> AsyncIterator[Credential]:
        """Names and ages, no tokens."""
        return self._wire.each(protocol.list_credentials, {})

    async def delete(self, name: str) -> None:
        """Forget a token."""
        await self._wire.send(protocol.delete_credential(name))


class AsyncClient:
    """A Lathe service, for one event loop; close it, or use it in an `async with` block.

    `base_url` defaults to LATHE_URL, else http://127.0.0.1:8321; `api_key` to LATHE_API_KEY.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 30.0,
        max_retries: int = 2,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        http = httpx.AsyncClient(**connection(base_url, api_key, timeout), transport=transport)
        self._wire = _Wire(http, RetryPolicy(max_retries), timeout)
        self.jobs = AsyncJobs(self._wire)
        self.artifacts = AsyncArtifacts(self._wire)
        self.webhook_endpoints = AsyncWebhookEndpoints(self._wire)
        self.credentials = AsyncCredentials(self._wire)

    async def techniques(self) -> list[TechniqueInfo]:
        """What a recipe's chain may name, with JSON schemas."""
        return [item async for item in self._wire.each(protocol.list_techniques, {})]

    async def formats(self) -> list[FormatInfo]:
        """Number formats, and which targets and engines take them."""
        return [item async for item in self._wire.each(protocol.list_formats, {})]

    async def health(self) -> Health:
        """Whether the service can take work. Raises `ServerError` when it cannot."""
        return await self._wire.send(protocol.health())

    async def close(self) -> None:
        """Close the connections."""
        await self._wire.http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _quiet(artifact: Artifact, received_bytes: int) -> None:
    pass
