"""The sync client: sends what `_protocol` builds, and sleeps where `_retry` says so."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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

    def __init__(self, http: httpx.Client, retry: RetryPolicy, timeout_seconds: float) -> None:
        self.http = http
        self.retry = retry
        self._stream_timeout = stream_timeout(timeout_seconds)

    def send(self, call: Call[T]) -> T:
        """The value that the answer stands for, after as many attempts as the policy allows."""
        attempt = 0
        while True:
            try:
                return self._send_once(call)
            except LatheError as error:
                if (delay := self.retry.delay(error, attempt)) is None:
                    raise
            time.sleep(delay)
            attempt += 1

    def _send_once(self, call: Call[T]) -> T:
        with self._mapped():
            response = self.http.request(**call.arguments())
        return protocol.conclude(call, response)

    @contextmanager
    def stream(self, call: Call[None]) -> Iterator[httpx.Response]:
        """One attempt at an answer whose body is read bit by bit."""
        with self._mapped(), self.http.stream(**call.arguments(), timeout=self._stream_timeout) as response:
            if not response.is_success:
                response.read()
                raise protocol.error_of(response)
            yield response

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            raise protocol.unreachable(self.http.base_url, error) from error

    def each(self, page: Callable[[Params], Call[Page[T]]], params: Params) -> Iterator[T]:
        """Every item of a list, asking for the next page when it is needed."""
        after = params.get("after")
        while True:
            answer = self.send(page({**params, "after": after}))
            yield from answer.data
            if not answer.has_more or answer.last_id is None:
                return
            after = answer.last_id


class Jobs:
    """Make, watch and stop jobs."""

    def __init__(self, wire: _Wire) -> None:
        self._wire = wire

    def create(self, recipe: Recipe | Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Queue a job. With the same `idempotency_key` and recipe the same job is answered, not a second one.

        Raises `RecipeRefused`, whose `field` points into the recipe.
        """
        return self._wire.send(protocol.create_job(recipe, idempotency_key))

    def create_from_file(self, path: StrPath, *, idempotency_key: str | None = None) -> Job:
        """Queue the recipe of a YAML file. Raises `optcore.errors.RecipeError` before anything is sent."""
        return self.create(load_recipe(Path(path)), idempotency_key=idempotency_key)

    def get(self, job_id: str) -> Job:
        """The job as it is now."""
        return self._wire.send(protocol.get_job(job_id))

    def list(self, *, status: Sequence[JobStatus] = (), after: str | None = None, page_size: int = 20) -> Iterator[Job]:
        """Your jobs, newest first; further pages are asked for while you iterate."""
        params = {"status": list(status) or None, "after": after, "limit": page_size}
        return self._wire.each(protocol.list_jobs, params)

    def cancel(self, job_id: str) -> Job:
        """Ask a job to stop; `wait` tells when it has. Raises `Conflict` when it ended otherwise."""
        return self._wire.send(protocol.cancel_job(job_id))

    def events(self, job_id: str, *, after: int = 0, stream: bool = False) -> Iterator[JobEvent]:
        """The job's history above sequence number `after`; with `stream`, also what comes, until the job ends."""
        cursor = Cursor(after)
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
        patience, cursor = Patience(timeout, poll_interval), Cursor()
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

    def _history(self, job_id: str, cursor: Cursor) -> Iterator[JobEvent]:
        while True:
            page = self._wire.send(protocol.list_events(job_id, cursor.seq))
            for event in page.data:
                if cursor.accept(event):
                    yield event
            if not page.has_more or not page.data:
                return

    def _follow(self, job_id: str, cursor: Cursor) -> Iterator[JobEvent]:
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

    def _listen(self, job_id: str, cursor: Cursor) -> Iterator[JobEvent]:
        cursor.begin()
        try:
            with self._wire.stream(protocol.stream_events(job_id, cursor.seq)) as response:
                for line in response.iter_lines():
                    if event := cursor.feed(line):
                        yield event
        except LatheError as error:
            if not worth_retrying(error):
                raise


class Artifacts:
    """The files of a finished job."""

    def __init__(self, wire: _Wire) -> None:
        self._wire = wire

    def list(self, job_id: str) -> Iterator[Artifact]:
        """Every file with its size and SHA-256."""
        return self._wire.each(lambda params: protocol.list_artifacts(job_id, params), {})

    def download(
        self, job_id: str, folder: StrPath, *, on_progress: Callable[[Artifact, int], None] | None = None
    ) -> tuple[Path, ...]:
        """Fetch every file into `folder`: resumed where it was interrupted, checked by SHA-256, renamed into place.

        `on_progress` gets the file and the bytes of it that are here. Raises `UnsafePath` or `DigestMismatch`; nothing
        with wrong bytes ever has its final name.
        """
        transfers = [Transfer(Path(folder), artifact) for artifact in self.list(job_id)]
        return tuple(self._fetch(job_id, transfer, on_progress or _quiet) for transfer in transfers)

    def _fetch(self, job_id: str, transfer: Transfer, on_progress: Callable[[Artifact, int], None]) -> Path:
        if transfer.is_here():
            on_progress(transfer.artifact, transfer.artifact.bytes)
            return transfer.target
        attempt = 0
        while True:
            try:
                if not transfer.is_complete():
                    self._receive(job_id, transfer, on_progress)
                return transfer.commit()
            except LatheError as error:
                if (delay := transfer.retry_delay(error, self._wire.retry, attempt)) is None:
                    raise
            time.sleep(delay)
            attempt += 1

    def _receive(self, job_id: str, transfer: Transfer, on_progress: Callable[[Artifact, int], None]) -> None:
        call = protocol.get_artifact(job_id, transfer.artifact.path, transfer.offset())
        with self._wire.stream(call) as response, transfer.receiving(response):
            for block in response.iter_raw():
                transfer.write(block)
                on_progress(transfer.artifact, transfer.received_bytes)


class WebhookEndpoints:
    """Receivers of signed messages."""

    def __init__(self, wire: _Wire) -> None:
        self._wire = wire

    def create(self, url: str, *, events: Sequence[WebhookEventType] | None = None) -> WebhookEndpoint:
        """Add a receiver. The answer's `secret` is shown this once: `lathe.unwrap` needs it."""
        return self._wire.send(protocol.create_webhook_endpoint(url, events))

    def list(self) -> Iterator[WebhookEndpoint]:
        """Your receivers, without their secrets."""
        return self._wire.each(protocol.list_webhook_endpoints, {})

    def delete(self, endpoint_id: str) -> None:
        """Remove a receiver; messages on their way to it are dropped."""
        self._wire.send(protocol.delete_webhook_endpoint(endpoint_id))


class Credentials:
    """Hub tokens that recipes refer to by name. They can be replaced and removed, never read."""

    def __init__(self, wire: _Wire) -> None:
        self._wire = wire

    def put(self, name: str, token: str) -> Credential:
        """Store or replace a token."""
        return self._wire.send(protocol.put_credential(name, token))

    def list(self) -> Iterator[Credential]:
        """Names and ages, no tokens."""
        return self._wire.each(protocol.list_credentials, {})

    def delete(self, name: str) -> None:
        """Forget a token."""
        self._wire.send(protocol.delete_credential(name))


class Client:
    """A Lathe service. Thread-safe; close it, or use it in a `with` block.

    `base_url` defaults to LATHE_URL, else http://127.0.0.1:8321; `api_key` to LATHE_API_KEY.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 30.0,
        max_retries: int = 2,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        http = httpx.Client(**connection(base_url, api_key, timeout), transport=transport)
        self._wire = _Wire(http, RetryPolicy(max_retries), timeout)
        self.jobs = Jobs(self._wire)
        self.artifacts = Artifacts(self._wire)
        self.webhook_endpoints = WebhookEndpoints(self._wire)
        self.credentials = Credentials(self._wire)

    def techniques(self) -> list[TechniqueInfo]:
        """What a recipe's chain may name, with JSON schemas."""
        return list(self._wire.each(protocol.list_techniques, {}))

    def formats(self) -> list[FormatInfo]:
        """Number formats, and which targets and engines take them."""
        return list(self._wire.each(protocol.list_formats, {}))

    def health(self) -> Health:
        """Whether the service can take work. Raises `ServerError` when it cannot."""
        return self._wire.send(protocol.health())

    def close(self) -> None:
        """Close the connections."""
        self._wire.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _quiet(artifact: Artifact, received_bytes: int) -> None:
    pass
