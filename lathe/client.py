"""The sync client: sends what `_protocol` builds, and sleeps where `_retry` says so."""

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

import httpx

from lathe._access import Credentials, Keys
from lathe._connection import connection
from lathe._jobs import Jobs
from lathe._protocol import access, catalog, jobs
from lathe._retry import RetryPolicy
from lathe._webhooks import WebhookEndpoints, WebhookMessages
from lathe._wire import Wire
from lathe.comparison_models import Comparison
from lathe.models import AuditEntry, FormatInfo, Health, Project, TechniqueInfo, Template, WorkerInfo
from lathe.webhooks import Webhooks


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
        self._speak_over(Wire(http, RetryPolicy(max_retries), timeout))

    def _speak_over(self, wire: Wire) -> None:
        self._wire = wire
        self.jobs = Jobs(wire)
        self.artifacts = self.jobs.artifacts
        self.webhook_endpoints = WebhookEndpoints(wire)
        self.webhook_messages = WebhookMessages(wire)
        self.webhooks = Webhooks()
        self.credentials = Credentials(wire)
        self.keys = Keys(wire)

    def with_options(self, *, timeout: float | None = None, max_retries: int | None = None) -> Self:
        """The same client with another patience, for one call or several; what is not named stays.

        Both share their connections: closing one closes the other.
        """
        other = object.__new__(type(self))
        other._speak_over(self._wire.with_options(timeout, max_retries))
        return other

    def compare(self, job_ids: Sequence[str]) -> Comparison:
        """Jobs side by side: what was asked, what came out, and which of them no other one beats."""
        return self._wire.send(jobs.compare_jobs(job_ids))

    def techniques(self) -> list[TechniqueInfo]:
        """What a recipe's chain may name, with JSON schemas."""
        return self._wire.all(catalog.list_techniques)

    def formats(self) -> list[FormatInfo]:
        """Number formats, and which targets and engines take them."""
        return self._wire.all(catalog.list_formats)

    def templates(self) -> list[Template]:
        """Recipes to start from, for purposes that people name."""
        return self._wire.all(catalog.list_templates)

    def workers(self) -> list[WorkerInfo]:
        """The machines that run engines, and what they do."""
        return self._wire.all(catalog.list_workers)

    def project(self) -> Project:
        """Whom the key speaks for, with limits and what is used of them."""
        return self._wire.send(access.get_project())

    def audit(self) -> Iterator[AuditEntry]:
        """Who did what in the project, newest first."""
        return self._wire.each(access.list_audit_entries, {})

    def health(self) -> Health:
        """Whether the service can take work. Raises `ServerError` when it cannot."""
        return self._wire.send(catalog.health())

    def close(self) -> None:
        """Close the connections."""
        self._wire.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
