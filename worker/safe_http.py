"""One POST to an address that a user chose: guarded, bounded in time and bytes, never redirected, never proxied.

The check and the connection are one step (the network backend resolves, checks and connects to the checked address), so
a name that answers differently a moment later changes nothing; host header, SNI and certificate check keep the name.
"""

import ssl
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

import httpcore
import httpx

from worker.address_guard import AddressGuard, AddressRefused, ResolverTooSlow

BODY_limit_bytes = 4 * 1024
"""A longer body is left unread; that the answer came is enough."""
ANSWER_limit_bytes = 64 * 1024
"""A receiver that sends more before its body was read (headers, interim answers) gets no more of our time."""
_CHUNK_bytes = 1024


class SendError(Exception):
    """No answer came: refused by us, by the network, or too late. The message is safe to show to the owner."""


class TooSlow(SendError):
    """No complete answer came in time."""


@dataclass(frozen=True)
class Answer:
    """All that is kept of a response."""

    status: int
    retry_after: str | None


def post(
    url: str, body: bytes, headers: Mapping[str, str], *, guard: AddressGuard, timeout_seconds: float = 20.0
) -> Answer:
    """Send `body` and read at most a few kB of the answer, which are thrown away. Raises `SendError`."""
    parts = _checked_url(url, guard)
    deadline = time.monotonic() + timeout_seconds
    try:
        with httpcore.ConnectionPool(
            ssl_context=_tls(), network_backend=_GuardedBackend(guard, deadline), max_connections=1
        ) as pool:
            request_headers = {"Host": _host_header(parts), "Content-Length": str(len(body)), **headers}
            with pool.stream(
                "POST",
                url,
                headers=list(request_headers.items()),
                content=body,
                extensions={"timeout": dict.fromkeys(("connect", "read", "write", "pool"), timeout_seconds)},
            ) as response:
                _drain(response.iter_stream())
                return Answer(response.status, _header(response.headers, b"retry-after"))
    except (httpcore.TimeoutException, ResolverTooSlow) as error:
        raise TooSlow(f"no complete answer within {timeout_seconds:g} s") from error
    except (AddressRefused, ssl.SSLError) as error:
        raise SendError(str(error)) from error
    except (httpcore.ProtocolError, httpcore.UnsupportedProtocol, UnicodeError) as error:
        # Its own words would quote what was answered, such as the greeting of a service that is no receiver.
        raise SendError("what came back is no HTTP answer") from error
    except (httpcore.NetworkError, OSError) as error:
        raise SendError(f"{type(error).__name__}: {error}") from error


def _checked_url(url: str, guard: AddressGuard) -> SplitResult:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise SendError("the address is not an http(s) URL") from error
    if parts.scheme not in ("http", "https") or not host:
        raise SendError("the address is not an http(s) URL")
    if parts.username is not None or parts.password is not None:
        raise SendError("the address carries a login; take it out")
    if parts.scheme == "http" and not guard.is_listed(host):
        raise SendError("the address is not https; only receivers that the operator allows may use http")
    return parts


def _host_header(parts: SplitResult) -> str:
    host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else str(parts.hostname)
    return f"{host}:{parts.port}" if parts.port else host


def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=True)  # SSL_CERT_FILE for private authorities


def _drain(chunks: Iterable[bytes]) -> None:
    read = 0
    for chunk in chunks:
        read += len(chunk)
        if read >= BODY_limit_bytes:
            return


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str | None:
    return next((value.decode("latin-1")[:100] for key, value in headers if key.lower() == name), None)


class _GuardedBackend(httpcore.NetworkBackend):
    """Connects to checked addresses only, and ends every wait at one deadline."""

    def __init__(self, guard: AddressGuard, deadline: float) -> None:
        self._guard = guard
        self._deadline = deadline
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """The first of the checked addresses that answers."""
        refusal: Exception = AddressRefused(f"{host} has no address")
        for address in self._guard.addresses(host, port, _left(self._deadline)):
            try:
                stream = self._plain.connect_tcp(address, port, _left(self._deadline), local_address, socket_options)
                return _DeadlineStream(stream, self._deadline)
            except httpcore.ConnectError as error:
                refusal = error
        raise refusal

    def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Never: a webhook does not go to a file."""
        raise AddressRefused("unix sockets are not receivers")


class _DeadlineStream(httpcore.NetworkStream):
    """A stream whose every operation ends at the same deadline: a receiver that drips bytes gains no time."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline
        self._left_bytes = ANSWER_limit_bytes

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._left_bytes <= 0:
            raise SendError(f"the answer is larger than {ANSWER_limit_bytes // 1024} kB before its body")
        read = self._stream.read(min(max_bytes, _CHUNK_bytes), _left(self._deadline))
        self._left_bytes -= len(read)
        return read

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _CHUNK_bytes):
            self._stream.write(buffer[start : start + _CHUNK_bytes], _left(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        tls = self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline))
        return _DeadlineStream(tls, self._deadline)

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("deadline")
    return left
