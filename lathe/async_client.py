"""The async client: `lathe.client` again, with `await`. What is sent and decided is in the modules that both share."""

from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Self

import httpx

from lathe._async_access import AsyncCredentials, AsyncKeys
from lathe._async_jobs import AsyncJobs
from lathe._async_webhooks import AsyncWebhookEndpoints, AsyncWebhookMessages
from lathe._connection import connection
from lathe._protocol import access, catalog, jobs
from lathe._retry import RetryPolicy
from lathe._wire import AsyncWire
from lathe.comparison_models import Comparison
from lathe.models import AuditEntry, FormatInfo, Health, Project, TechniqueInfo, Template, WorkerInfo
from lathe.webhooks import Webhooks


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
        self._speak_over(AsyncWire(http, RetryPolicy(max_retries), timeout))

    def _speak_over(self, wire: AsyncWire) -> None:
        self._wire = wire
        self.jobs = AsyncJobs(wire)
        self.artifacts = self.jobs.artifacts
        self.webhook_endpoints = AsyncWebhookEndpoints(wire)
        self.webhook_messages = AsyncWebhookMessages(wire)
        self.webhooks = Webhooks()
        self.credentials = AsyncCredentials(wire)
        self.keys = AsyncKeys(wire)

    def with_options(self, *, timeout: float | None = None, max_retries: int | None = None) -> Self:
        """The same client with another patience, for one call or several; what is not named stays.

        Both share their connections: closing one closes the other.
        """
        other = object.__new__(type(self))
        other._speak_over(self._wire.with_options(timeout, max_retries))
        return other

    async def compare(self, job_ids: Sequence[str]) -> Comparison:
        """Jobs side by side: what was asked, what came out, and which of them no other one beats."""
        return await self._wire.send(jobs.compare_jobs(job_ids))

    async def techniques(self) -> list[TechniqueInfo]:
        """What a recipe's chain may name, with JSON schemas."""
        return await self._wire.all(catalog.list_techniques)

    async def formats(self) -> list[FormatInfo]:
        """Number formats, and which targets and engines take them."""
        return await self._wire.all(catalog.list_formats)

    async def templates(self) -> list[Template]:
        """Recipes to start from, for purposes that people name."""
        return await self._wire.all(catalog.list_templates)

    async def workers(self) -> list[WorkerInfo]:
        """The machines that run engines, and what they do."""
        return await self._wire.all(catalog.list_workers)

    async def project(self) -> Project:
        """Whom the key speaks for, with limits and what is used of them."""
        return await self._wire.send(access.get_project())

    def audit(self) -> AsyncIterator[AuditEntry]:
        """Who did what in the project, newest first."""
        return self._wire.each(access.list_audit_entries, {})

    async def health(self) -> Health:
        """Whether the service can take work. Raises `ServerError` when it cannot."""
        return await self._wire.send(catalog.health())

    async def close(self) -> None:
        """Close the connections."""
        await self._wire.http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
