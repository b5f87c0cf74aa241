"""One POST: to the address that was checked, in the time that it has, and with little of the answer taken."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from worker.address_guard import AddressGuard
from worker.safe_http import ANSWER_limit_bytes, SendError, TooSlow, post

LOCAL = AddressGuard.allowing(["127.0.0.1"])
STRICT = AddressGuard()


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
        ("https://127.0.0.1/", "not public"),
        ("https://hooks.example\\@127.0.0.1/", "login"),
        ("https://127.0.0.1%2f@hooks.example/", "login"),
        ("https://[::ffff:7f00:1]/", "not public"),
        ("https://2130706433/", "not public"),
        ("https://8.8.8.8:22/", "port 22"),
        ("https://8.8.8.8:25/", "port 25"),
        ("https://8.8.8.8:99999/", "not an http"),
        ("https://[x/", "not an http"),
        ("unix:///var/run/docker.sock", "not an http"),
        ("http+unix://%2Fvar%2Frun%2Fdocker.sock/", "not an http"),
        ("https://user:pw@hooks.example/", "login"),
        ("ftp://hooks.example/", "not an http"),
        ("https:///path", "not an http"),
        ("https://no-such-host.invalid/", "does not resolve"),
    ],
)
def test_a_refused_url_says_why(url: str, reason: str) -> None:
    with pytest.raises(SendError, match=reason):
        post(url, b"{}", {}, guard=STRICT)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_an_answer_and_is_not_followed(status: int) -> None:
    answer = f"HTTP/1.1 {status} Go\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\nRetry-After: 7\r\n\r\n"
    with _receiver(answer.encode()) as (port, requests):
        got = post(f"http://127.0.0.1:{port}/hook", b"body", {"webhook-id": "msg_1"}, guard=LOCAL)
    assert (got.status, got.retry_after) == (status, "7")
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
    "first",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nX-Slow: ",
        b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
    ],
)
def test_a_receiver_that_drips_bytes_gains_no_time(first: bytes) -> None:
    with _receiver(first, b"x", pause_seconds=0.1, times=100) as (port, _):
        started = time.monotonic()
        with pytest.raises(TooSlow, match="no complete answer within"):
            post(f"http://127.0.0.1:{port}/", b"{}", {}, guard=LOCAL, timeout_seconds=0.6)
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(("first", "more"), [(b"", b""), (b"\x16\x03\x03\x40\x00", b"x")])
def test_a_slow_handshake_gains_no_time_either(first: bytes, more: bytes) -> None:
    """Nothing comes; or of a TLS record that is announced, a byte now and then."""
    with _receiver(first, more, pause_seconds=0.1, times=100, reads=False) as (port, _):
        started = time.monotonic()
        with pytest.raises(TooSlow):
            post(f"https://127.0.0.1:{port}/", b"{}", {}, guard=LOCAL, timeout_seconds=0.6)
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("first", "more"),
    [(b"HTTP/1.1 200 OK\r\nX-Long: ", b"x" * 1024), (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 40)],
    ids=["a header without end", "interim answers without end"],
)
def test_an_answer_that_never_comes_to_its_body_is_cut_off(first: bytes, more: bytes) -> None:
    with _receiver(first, more, times=100_000) as (port, _):
        started = time.monotonic()
        with pytest.raises(SendError, match=f"larger than {ANSWER_limit_bytes // 1024} kB"):
            post(f"http://127.0.0.1:{port}/", b"{}", {}, guard=LOCAL, timeout_seconds=10)
    assert time.monotonic() - started < 5


def test_a_compressed_body_is_not_unpacked() -> None:
    """A bomb stays what it is: these bytes would not even unpack."""
    body = b"\x1f\x8b" + b"\xff" * 98
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
    with _receiver(head.encode() + body) as (port, _):
        assert post(f"http://127.0.0.1:{port}/", b"{}", {}, guard=LOCAL).status == 200


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.6 hush\r\n", b"HTTP/1.1 200 OK\r\nhush\r\n\r\n"])
def test_the_greeting_of_another_service_is_not_repeated(greeting: bytes) -> None:
    with _receiver(greeting) as (port, _), pytest.raises(SendError) as refused:
        post(f"http://127.0.0.1:{port}/", b"{}", {}, guard=LOCAL, timeout_seconds=5)
    assert str(refused.value) == "what came back is no HTTP answer"


def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would resolve the name itself, and reach what it likes."""
    with _receiver(b"HTTP/1.1 418 Proxy\r\n\r\n") as (trap, trapped):
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{trap}")
            monkeypatch.setenv(name.lower(), f"http://127.0.0.1:{trap}")
        with _receiver(b"HTTP/1.1 204 No Content\r\n\r\n") as (port, _):
            assert post(f"http://127.0.0.1:{port}/", b"{}", {}, guard=LOCAL).status == 204
        assert trapped == []
        with socket.create_connection(("127.0.0.1", trap)) as end:  # lets the trap's thread go
            end.sendall(b"Content-Length:0\r\n\r\n")


def test_the_certificate_must_be_the_names_although_the_address_was_resolved_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(_certificate(tmp_path, "hooks.example")))
    guard = AddressGuard.allowing(["hooks.example", "other.example"])
    real = socket.getaddrinfo
    local = {"hooks.example": "127.0.0.1", "other.example": "127.0.0.1"}
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: real(local.get(host, host), *rest, **more))
    for name in ("hooks.example", "other.example"):
        with _receiver(b"HTTP/1.1 204 No Content\r\n\r\n", tls=tmp_path) as (port, requests):
            if name == "hooks.example":
                assert post(f"https://{name}:{port}/", b"{}", {}, guard=guard).status == 204
                assert f"Host: {name}:{port}".encode() in requests[0]
            else:
                with pytest.raises(SendError, match=r"not valid for 'other\.example'"):
                    post(f"https://{name}:{port}/", b"{}", {}, guard=guard)
                assert requests == []


def test_nobody_listening_is_an_error_and_not_a_crash() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(SendError, match="ConnectError"):
            post(f"http://127.0.0.1:{port}/", b"{}", {}, guard=LOCAL)


@contextmanager
def _receiver(
    first: bytes,
    more: bytes = b"",
    *,
    pause_seconds: float = 0.0,
    times: int = 0,
    reads: bool = True,
    tls: Path | None = None,
) -> Iterator[tuple[int, list[bytes]]]:
    """A server for one connection that writes `first`, then `more` again and again, whatever it is asked."""
    requests: list[bytes] = []
    over = threading.Event()

    def serve() -> None:
        connection, _ = server.accept()
        try:
            with _secured(connection, tls) as stream:
                if reads:
                    requests.append(_request(stream))
                stream.sendall(first)
                for _ in range(times):
                    if over.wait(pause_seconds):
                        return
                    stream.sendall(more)
        except OSError:
            return

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1], requests
        over.set()
        thread.join(5)


def _request(stream: socket.socket) -> bytes:
    with stream.makefile("rb") as request:
        head = b"".join(iter(request.readline, b"\r\n"))
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:"))
        return head + b"\r\n" + request.read(length)


def _secured(connection: socket.socket, tls: Path | None) -> socket.socket:
    if tls is None:
        return connection
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls / "certificate.pem", tls / "key.pem")
    return context.wrap_socket(connection, server_side=True)


def _certificate(folder: Path, name: str) -> Path:
    """A certificate for the name that signs itself, and its key beside it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(private)
    (folder / "certificate.pem").write_bytes(made.public_bytes(pem))
    return folder / "certificate.pem"
