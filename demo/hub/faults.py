"""Failures on demand: the next answers to matching requests are an error of your choice, late, or cut off."""

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse


@dataclass
class Fault:
    """Answer `status` to the next `times` requests whose `METHOD /path` matches `pattern`."""

    pattern: str
    status: int
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    after: bool = False
    """Do what was asked, and lose the answer."""
    cut_after_bytes: int | None = None
    """Close the connection when so much of the body has come, instead of an answer."""
    delay_seconds: float = 0
    """Wait so long first; with status 200 that is all."""


class Faults:
    """The faults that wait, and the requests that came."""

    def __init__(self) -> None:
        self.waiting: list[Fault] = []
        self.requests: list[str] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        """Let it happen."""
        re.compile(fault.pattern)
        with self._lock:
            self.waiting.append(fault)

    async def between(self, request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        """The middleware."""
        fault = self._take(f"{request.method} {request.url.path}")
        if fault is None:
            return await call_next(request)
        await asyncio.sleep(fault.delay_seconds)
        if fault.cut_after_bytes is not None:
            return await _cut(request, fault.cut_after_bytes)
        if fault.status == 200:
            return await call_next(request)
        if fault.after:
            await call_next(request)
        return JSONResponse({"error": "injected fault"}, fault.status, fault.headers)

    def _take(self, line: str) -> Fault | None:
        with self._lock:
            self.requests.append(line)
            for fault in self.waiting:
                if fault.times > 0 and re.search(fault.pattern, line):
                    fault.times -= 1
                    return fault
        return None


async def _cut(request: Request, bytes_: int) -> Response:
    """Take so much of the body, then promise a byte that never comes: the server closes the connection."""
    taken = 0
    async for chunk in request.stream():
        taken += len(chunk)
        if taken >= bytes_:
            break
    return StreamingResponse(_nothing(), headers={"content-length": "1"})


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""
