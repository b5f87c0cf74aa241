"""How the clients send: one connection pool, and one rule for sending again. The sync one and its async twin."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

import httpx

from lathe._connection import request_timeout, stream_timeout
from lathe._protocol.call import Call, Params, conclude, error_of, unreachable
from lathe._retry import RetryPolicy
from lathe.errors import LatheError
from lathe.models import Page

T = TypeVar("T")


class Wire:
    """Blocks while it waits."""

    def __init__(self, http: httpx.Client, retry: RetryPolicy, timeout_seconds: float) -> None:
        self.http = http
        self.retry = retry
        self._timeout_seconds = timeout_seconds

    def with_options(self, timeout_seconds: float | None, max_retries: int | None) -> "Wire":
        """The same connections with another patience."""
        retry = self.retry if max_retries is None else RetryPolicy(max_retries)
        return Wire(self.http, retry, self._timeout_seconds if timeout_seconds is None else timeout_seconds)

    def send(self, call: Call[T]) -> T:
        """The value that the answer stands for, after as many attempts as the policy allows."""
        attempt = 0
        while True:
            try:
                return self._send_once(call, attempt)
            except LatheError as error:
                if (delay := self.retry.delay(error, attempt)) is None:
                    raise
            time.sleep(delay)
            attempt += 1

    def _send_once(self, call: Call[T], attempt: int) -> T:
        with self._mapped():
            response = self.http.request(**call.arguments(), timeout=request_timeout(self._timeout_seconds))
        return conclude(call, response, attempt)

    @contextmanager
    def stream(self, call: Call[None]) -> Iterator[httpx.Response]:
        """One attempt at an answer whose body is read bit by bit."""
        timeout = stream_timeout(self._timeout_seconds)
        with self._mapped(), self.http.stream(**call.arguments(), timeout=timeout) as response:
            if not response.is_success:
                response.read()
                raise error_of(response)
            yield response

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            raise unreachable(self.http.base_url, error) from error

    def each(self, page: Callable[[Params], Call[Page[T]]], params: Params) -> Iterator[T]:
        """Every item of a list, asking for the next page when it is needed."""
        after = params.get("after")
        while True:
            answer = self.send(page({**params, "after": after}))
            yield from answer.data
            if not answer.has_more or answer.last_id is None:
                return
            after = answer.last_id

    def all(self, page: Callable[[Params], Call[Page[T]]]) -> list[T]:
        """A whole list at once, for short ones."""
        return list(self.each(page, {}))


class AsyncWire:
    """For one event loop."""

    def __init__(self, http: httpx.AsyncClient, retry: RetryPolicy, timeout_seconds: float) -> None:
        self.http = http
        self.retry = retry
        self._timeout_seconds = timeout_seconds

    def with_options(self, timeout_seconds: float | None, max_retries: int | None) -> "AsyncWire":
        """The same connections with another patience."""
        retry = self.retry if max_retries is None else RetryPolicy(max_retries)
        return AsyncWire(self.http, retry, self._timeout_seconds if timeout_seconds is None else timeout_seconds)

    async def send(self, call: Call[T]) -> T:
        """The value that the answer stands for, after as many attempts as the policy allows."""
        attempt = 0
        while True:
            try:
                return await self._send_once(call, attempt)
            except LatheError as error:
                if (delay := self.retry.delay(error, attempt)) is None:
                    raise
            await asyncio.sleep(delay)
            attempt += 1

    async def _send_once(self, call: Call[T], attempt: int) -> T:
        with self._mapped():
            response = await self.http.request(**call.arguments(), timeout=request_timeout(self._timeout_seconds))
        return conclude(call, response, attempt)

    @asynccontextmanager
    async def stream(self, call: Call[None]) -> AsyncIterator[httpx.Response]:
        """One attempt at an answer whose body is read bit by bit."""
        timeout = stream_timeout(self._timeout_seconds)
        with self._mapped():
            async with self.http.stream(**call.arguments(), timeout=timeout) as response:
                if not response.is_success:
                    await response.aread()
                    raise error_of(response)
                yield response

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            raise unreachable(self.http.base_url, error) from error

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

    async def all(self, page: Callable[[Params], Call[Page[T]]]) -> list[T]:
        """A whole list at once, for short ones."""
        return [item async for item in self.each(page, {})]
