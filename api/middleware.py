"""What happens around every request: an id, safe headers, one log line, and an answer even to a bug of ours."""

import re
import secrets
import time

import structlog
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import problems, tracing
from api.errors import ServiceError
from api.monitoring.requests import route_of

SAFE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}
"""Set where a route does not set its own."""

_ONLY_TLS = f"max-age={365 * 24 * 3600}"
"""What came over TLS asks for no more than its own host: subdomains and preloading are the owner's of the domain."""

_SAFE = [(name.lower().encode(), value.encode()) for name, value in SAFE_HEADERS.items()]
_SAFE_OVER_TLS = [*_SAFE, (b"strict-transport-security", _ONLY_TLS.encode())]
_STREAM = b"text/event-stream"
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")
_log = structlog.get_logger("lathe.request")


class Around:
    """Pure ASGI, so that it sees streams too and buffers nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        scope["request_id"] = _request_id(headers)
        answer = _Answer(send, scope)
        trusted = scope["app"].state.lathe.settings.trust_traceparent
        caller = {"parent" if trusted else "link": headers.get("traceparent")}
        with (
            structlog.contextvars.bound_contextvars(request_id=scope["request_id"]),
            tracing.span("request", kind="server", **caller),
        ):
            try:
                await self._app(scope, receive, answer.send)
            except Exception:  # the outermost loop of a request
                _log.exception("request_crashed", method=scope["method"], path=scope["path"])
                await answer.crash(receive)
            finally:
                answer.end()


class _Answer:
    """The response on its way out."""

    def __init__(self, send: Send, scope: Scope) -> None:
        self._status = 0
        self._send = send
        self._scope = scope
        self._began = time.perf_counter()
        self._is_stream = False
        self._metrics = scope["app"].state.lathe.requests
        self._headers = _SAFE_OVER_TLS if scope["scheme"] == "https" else _SAFE
        self._request_id = b"x-request-id", scope["request_id"].encode()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            own = message.setdefault("headers", [])
            given = {name for name, _ in own}
            self._is_stream = any(name == b"content-type" and value.startswith(_STREAM) for name, value in own)
            if self._is_stream:
                self._count()
                self._metrics.streams.inc()
            message["headers"] = [*own, self._request_id, *(pair for pair in self._headers if pair[0] not in given)]
        await self._send(message)

    async def crash(self, receive: Receive) -> None:
        if self._status:
            raise ConnectionAbortedError("the answer broke off in the middle")
        error = ServiceError("something went wrong here", remedy="tell the operator the request_id")
        await problems.answer(Request(self._scope), error)(self._scope, receive, self.send)

    def end(self) -> None:
        """Everything was sent, or the client has left: tell the log, the metrics and the trace."""
        if self._is_stream:
            self._metrics.streams.dec()
        else:
            self._count()
        scope, route = self._scope, route_of(self._scope)
        took_ms = round(1000 * (time.perf_counter() - self._began), 1)
        ids = {name: value for name, value in scope.get("path_params", {}).items() if name.endswith("_id")}
        told = {"method": scope["method"], "path": scope["path"], "status": self._status, "ms": took_ms}
        _log.info("request", **told, route=route, **ids)
        tracing.name_request(scope["method"], route, self._status, request_id=scope["request_id"], **ids)

    def _count(self) -> None:
        self._metrics.answered(self._scope, self._status, time.perf_counter() - self._began)


def _request_id(headers: Headers) -> str:
    """The caller's, when it is harmless in a log."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(12)
