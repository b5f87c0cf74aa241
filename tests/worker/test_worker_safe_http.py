"""Where a webhook may go, and how little of the answer is taken."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from worker.address_guard import AddressGuard, AddressRefused
from worker.backoff import DELAYS_seconds, next_delay_seconds, retry_after_seconds
from worker.safe_http import SendError, post

LOCAL = AddressGuard.allowing(["127.0.0.1"])
STRICT = AddressGuard()


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.100.100.200",
        "192.0.0.192",
        "198.18.0.1",
        "203.0.113.5",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2001:0:7f00:1::",
        "fe80::1",
        "fd00:ec2::254",
        "fc00::1",
        "ff02::1",
        "2001:db8::1",
    ],
)
def test_an_address_that_is_not_public_is_refused(host: str) -> None:
    with pytest.raises(AddressRefused, match=r"not a public address|does not resolve"):
        STRICT.addresses(host, 443)


@pytest.mark.parametrize("host", ["1.1.1.1", "8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_a_public_address_is_allowed(host: str) -> None:
    assert STRICT.addresses(host, 443) == [host]


def test_the_operator_allows_networks_and_names() -> None:
    guard = AddressGuard.allowing(["10.0.0.0/8", "::1"])
    assert guard.addresses("10.9.8.7", 80) == ["10.9.8.7"]
    assert guard.addresses("::1", 80) == ["::1"]
    assert guard.is_listed("10.9.8.7")
    assert not guard.is_listed("hooks.example")
    with pytest.raises(AddressRefused):
        guard.addresses("127.0.0.1", 80)


@pytest.mark.parametrize("host", ["10.0.0.1", "127.0.0.1"])
def test_one_private_answer_spoils_a_public_name(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in ("8.8.8.8", host)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: mixed)
    with pytest.raises(AddressRefused, match=host):
        STRICT.addresses("rebinding.example", 443)
    assert AddressGuard.allowing(["rebinding.example"]).addresses("rebinding.example", 443) == ["8.8.8.8", host]


def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that answers differently the second time is never asked a second time."""
    with _receiver(b"HTTP/1.1 204 No Content\r\n\r\n") as (port, requests):
        answers = iter([[(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]])
        real = socket.getaddrinfo

        def resolve(host: str, *rest: object, **options: object) -> object:
            return next(answers) if host == "rebinding.example" else real(host, *rest, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        guard = AddressGuard.allowing(["rebinding.example"])
        assert post(f"http://rebinding.example:{port}/hook", b"{}", {}, guard=guard).status == 204
    assert f"Host: rebinding.example:{port}".encode() in requests[0]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1/", "not https"),
        ("https://127.0.0.1/", "not a public address"),
        ("https://user:pw@hooks.example/", "login"),
        ("ftp://hooks.example/", "not an http"),
        ("https:///path", "not an http"),
        ("https://no-such-host.invalid/", "does not resolve"),
    ],
)
def test_a_refused_url_says_why(url: str, reason: str) -> None:
    with pytest.raises(SendError, match=reason):
        post(url, b"{}", {}, guard=STRICT)


def test_a_redirect_is_an_answer_and_is_not_followed() -> None:
    answer = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\nRetry-After: 7\r\n\r\n"
    with _receiver(answer) as (port, requests):
        got = post(f"http://127.0.0.1:{port}/hook", b"body", {"webhook-id": "msg_1"}, guard=LOCAL)
    assert (got.status, got.retry_after) == (302, "7")
    assert len(requests) == 1
    assert requests[0].startswith(b"POST /hook HTTP/1.1\r\n")
    assert b"webhook-id: msg_1\r\n" in requests[0]
    assert requests[0].endswith(b"\r\n\r\nbody")


def test_an_endless_body_is_left_unread() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n"
    with _receiver(head, b"x" * 1024, pause_seconds=0.0, times=100_000) as (port, _):
        started = time.monotonic()
        assert post(f"http://127.0.0.1:{port}/", b"{}", {}, guard=LOCAL, timeout_seconds=10).status == 200
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "first", [b"", b"HTTP/1.1 200 OK\r\nX-Slow: ", b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n"]
)
def test_a_receiver_that_drips_bytes_gains_no_time(first: bytes) -> None:
    with _receiver(first, b"x", pause_seconds=0.1, times=100) as (port, _):
        started = time.monotonic()
        with pytest.raises(SendError, match="no complete answer within"):
            post(f"http://127.0.0.1:{port}/", b"{}", {}, guard=LOCAL, timeout_seconds=0.6)
    assert time.monotonic() - started < 3


def test_nobody_listening_is_an_error_and_not_a_crash() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(SendError, match="ConnectError"):
            post(f"http://127.0.0.1:{port}/", b"{}", {}, guard=LOCAL)


def test_delays_follow_the_standard_and_end() -> None:
    for attempts in range(1, len(DELAYS_seconds)):
        delay = next_delay_seconds(attempts)
        assert delay is not None
        assert DELAYS_seconds[attempts] <= delay <= DELAYS_seconds[attempts] * 1.2
    assert next_delay_seconds(len(DELAYS_seconds)) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("soon", 0),
        ("-5", 0),
        ("120", 120),
        ("99999999", 86400),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
    ],
)
def test_retry_after_is_honoured_within_reason(value: str | None, seconds: float) -> None:
    assert retry_after_seconds(value) == seconds
    assert (next_delay_seconds(1, value) or 0) >= seconds


@contextmanager
def _receiver(
    first: bytes, more: bytes = b"", *, pause_seconds: float = 0.0, times: int = 0
) -> Iterator[tuple[int, list[bytes]]]:
    """A server for one connection that writes `first`, then `more` again and again, whatever it is asked."""
    requests: list[bytes] = []
    over = threading.Event()

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            with connection.makefile("rb") as request:
                head = b"".join(iter(request.readline, b"\r\n"))
                length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:"))
                requests.append(head + b"\r\n" + request.read(length))
            try:
                connection.sendall(first)
                for _ in range(times):
                    if over.wait(pause_seconds):
                        return
                    connection.sendall(more)
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1], requests
        over.set()
        thread.join(5)
