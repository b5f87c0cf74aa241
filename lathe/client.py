"""The sync client: sends what `_protocol` builds, and sleeps where `_retry` says so."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from lathe import _protocol as protocol
from lathe._connection import connection
from lathe._jobs import Jobs, StrPath
from lathe._retry import RetryPolicy
from lathe._transfer import Transfer
from lathe._webhooks import WebhookEndpoints, WebhookMessages
from lathe._wire import Wire
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


class Artifacts:
    """The files of a finished job."""

    def __init__(self, wire: Wire) -> None:
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


class Credentials:
    """Hub tokens that recipes refer to by name. They can be replaced and removed, never read."""

    def __init__(self, wire: Wire) -> None:
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


class Keys:
    """API keys of the project."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def create(self, name: str = "", *, scopes: Sequence[Scope], expires_in_days: int | None = None) -> ApiKey:
        """Make a key that is allowed no more than yours. The answer's `key` is shown this once."""
        return self._wire.send(protocol.create_key(name, scopes, expires_in_days))

    def list(self) -> Iterator[ApiKey]:
        """The project's keys, newest first, without the keys themselves."""
        return self._wire.each(protocol.list_keys, {})

    def revoke(self, key_id: str) -> None:
        """Refuse a key from now on."""
        self._wire.send(protocol.revoke_key(key_id))


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
        self._wire = Wire(http, RetryPolicy(max_retries), timeout)
        self.jobs = Jobs(self._wire)
        self.artifacts = Artifacts(self._wire)
        self.webhook_endpoints = WebhookEndpoints(self._wire)
        self.webhook_messages = WebhookMessages(self._wire)
        self.credentials = Credentials(self._wire)
        self.keys = Keys(self._wire)

    def techniques(self) -> list[TechniqueInfo]:
        """What a recipe's chain may name, with JSON schemas."""
        return list(self._wire.each(protocol.list_techniques, {}))

    def formats(self) -> list[FormatInfo]:
        """Number formats, and which targets and engines take them."""
        return list(self._wire.each(protocol.list_formats, {}))

    def project(self) -> Project:
        """Whom the key speaks for, with limits and what is used of them."""
        return self._wire.send(protocol.get_project())

    def audit(self) -> Iterator[AuditEntry]:
        """Who did what in the project, newest first."""
        return self._wire.each(protocol.list_audit_entries, {})

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
