"""The async client: `lathe.client` again, with `await`. What is sent and decided is in the modules that both share."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from lathe import _protocol as protocol
from lathe._async_jobs import AsyncJobs, StrPath
from lathe._async_webhooks import AsyncWebhookEndpoints, AsyncWebhookMessages
from lathe._connection import connection
from lathe._retry import RetryPolicy
from lathe._transfer import Transfer
from lathe._wire import AsyncWire
from lathe.errors import LatheError
from lathe.models import (
    ApiKey,
    Artifact,
    AuditEntry,
    Credential,
    FormatInfo,
    Health,
    Project,
    Scope,
    TechniqueInfo,
)


class AsyncArtifacts:
    """The files of a finished job."""

    def __init__(self, wire: AsyncWire) -> None:
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


class AsyncCredentials:
    """Hub tokens that recipes refer to by name. They can be replaced and removed, never read."""

    def __init__(self, wire: AsyncWire) -> None:
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


class AsyncKeys:
    """API keys of the project."""

    def __init__(self, wire: AsyncWire) -> None:
        self._wire = wire

    async def create(self, name: str = "", *, scopes: Sequence[Scope], expires_in_days: int | None = None) -> ApiKey:
        """Make a key that is allowed no more than yours. The answer's `key` is shown this once."""
        return await self._wire.send(protocol.create_key(name, scopes, expires_in_days))

    def list(self) -> AsyncIterator[ApiKey]:
        """The project's keys, newest first, without the keys themselves."""
        return self._wire.each(protocol.list_keys, {})

    async def revoke(self, key_id: str) -> None:
        """Refuse a key from now on."""
        await self._wire.send(protocol.revoke_key(key_id))


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
        self._wire = AsyncWire(http, RetryPolicy(max_retries), timeout)
        self.jobs = AsyncJobs(self._wire)
        self.artifacts = AsyncArtifacts(self._wire)
        self.webhook_endpoints = AsyncWebhookEndpoints(self._wire)
        self.webhook_messages = AsyncWebhookMessages(self._wire)
        self.credentials = AsyncCredentials(self._wire)
        self.keys = AsyncKeys(self._wire)

    async def techniques(self) -> list[TechniqueInfo]:
        """What a recipe's chain may name, with JSON schemas."""
        return [item async for item in self._wire.each(protocol.list_techniques, {})]

    async def formats(self) -> list[FormatInfo]:
        """Number formats, and which targets and engines take them."""
        return [item async for item in self._wire.each(protocol.list_formats, {})]

    async def project(self) -> Project:
        """Whom the key speaks for, with limits and what is used of them."""
        return await self._wire.send(protocol.get_project())

    def audit(self) -> AsyncIterator[AuditEntry]:
        """Who did what in the project, newest first."""
        return self._wire.each(protocol.list_audit_entries, {})

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
