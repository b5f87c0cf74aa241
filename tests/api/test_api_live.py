"""The service as a process of its own: streams that follow a job, resume and end; stopping; its logs."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psycopg
import pytest
from fixtures.waiting import until

from api import lifecycle
from api.lifecycle import Claim
from api.store import keys
from api.store.session import Sessions
from optcore.events import Notice, StageStarted

pytestmark = pytest.mark.integration
STREAM = {"Accept": "text/event-stream"}


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    url: str
    key: str
    log: Path

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=20)


@pytest.fixture
def server(database_url: str, sessions: Sessions, tmp_path: Path) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with sessions.begin() as session:
        _, key = keys.create(session, "acme")
    environment = os.environ | {
        "LATHE_DATABASE_URL": database_url,
        "LATHE_DATA_DIR": str(tmp_path),
        "LATHE_SECRET_KEY": "k" * 40,
        "LATHE_PORT": str(port),
    }
    log = tmp_path / "api.log"
    with (
        log.open("wb") as stderr,
        subprocess.Popen([sys.executable, "-m", "api"], env=environment, stderr=stderr) as process,
    ):
        made = Server(process, f"http://127.0.0.1:{port}", key, log)
        until(lambda: process.poll() is not None or _answers(made), "the service")
        yield made
        process.kill()


def _answers(server: Server) -> bool:
    try:
        return httpx.get(f"{server.url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def _ids(lines: Iterator[str]) -> Iterator[int]:
    """Numbers of the events of a stream, until it says that it ends."""
    ended = False
    for line in lines:
        if line.startswith("id: "):
            yield int(line.removeprefix("id: "))
        ended = ended or line == "event: end"
    assert ended


def test_a_stream_follows_the_job_to_its_end(server: Server, sessions: Sessions, held: Claim) -> None:
    url = f"/v1/jobs/{held.job_id}/events"
    with server.client() as client, client.stream("GET", url, headers=STREAM) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["cache-control"] in {"no-cache", "no-store"}
        ids = _ids(stream.iter_lines())
        assert [next(ids), next(ids)] == [1, 2]
        with sessions.begin() as session:
            lifecycle.record(session, held, [StageStarted(stage="1-ptq", key="k")])
        began = time.monotonic()
        assert next(ids) == 3
        assert time.monotonic() - began < 1.5, "woken, not polled"
        with sessions.begin() as session:
            lifecycle.finish(session, held, "digest", [])
        assert list(ids) == [4]


def test_a_stream_that_broke_off_goes_on_behind_the_last_event(server: Server, sessions: Sessions, held: Claim) -> None:
    url = f"/v1/jobs/{held.job_id}/events"
    with sessions.begin() as session:
        lifecycle.record(session, held, [Notice(stage="s", message=str(number)) for number in range(700)])
    seen: list[int] = []
    with server.client() as client:
        with client.stream("GET", url, headers=STREAM) as stream:
            for number in _ids(stream.iter_lines()):
                seen.append(number)
                if number == 600:
                    break
        with sessions.begin() as session:
            lifecycle.finish(session, held, "digest", [])
        with client.stream("GET", url, headers=STREAM | {"Last-Event-ID": "600"}) as stream:
            seen += _ids(stream.iter_lines())
        page = client.get(url, params={"after": 700, "limit": 2}).json()
    assert seen == list(range(1, 704))
    assert ([event["seq"] for event in page["data"]], page["has_more"], page["last_id"]) == ([701, 702], True, "702")


def test_streams_hold_no_database_connection(server: Server, database_url: str, held: Claim) -> None:
    """Thirty of them on a pool of twenty, and others still get through."""
    url = f"/v1/jobs/{held.job_id}/events"
    with server.client() as client:
        streams = [client.stream("GET", url, headers=STREAM) for _ in range(30)]
        try:
            for stream in streams:
                assert next(_ids(stream.__enter__().iter_lines())) == 1
            assert client.get(f"/v1/jobs/{held.job_id}").status_code == 200
            with psycopg.connect(database_url) as connection:
                counted = connection.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
                ).fetchone()
            assert counted == (1,)
        finally:
            for stream in streams:
                stream.__exit__(None, None, None)


def test_a_stream_survives_the_loss_of_the_listening_connection(
    server: Server, sessions: Sessions, database_url: str, held: Claim
) -> None:
    with server.client() as client, client.stream("GET", f"/v1/jobs/{held.job_id}/events", headers=STREAM) as stream:
        ids = _ids(stream.iter_lines())
        assert [next(ids), next(ids)] == [1, 2]
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        sessions.kw["bind"].dispose()
        with sessions.begin() as session:
            lifecycle.finish(session, held, "digest", [])
        assert list(ids) == [3]


def test_sigterm_ends_the_service_though_a_stream_is_open(server: Server, held: Claim) -> None:
    with server.client() as client, client.stream("GET", f"/v1/jobs/{held.job_id}/events", headers=STREAM) as stream:
        assert next(_ids(stream.iter_lines())) == 1
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(10)
        assert time.monotonic() - began < 6


def test_logs_are_json_lines_without_secrets(server: Server) -> None:
    with server.client() as client:
        client.put("/v1/credentials/main", json={"token": "hf_verysecrettoken"})
        client.get("/v1/jobs/x", headers={"X-Request-Id": "request-0001"})
    until(lambda: "request-0001" in server.log.read_text(), "the last request's line")
    text = server.log.read_text()
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    (line,) = [each for each in lines if each.get("request_id") == "request-0001"]
    assert (line["event"], line["method"], line["path"], line["status"]) == ("request", "GET", "/v1/jobs/x", 404)
    assert not any(secret in text for secret in ("hf_very", server.key, "Traceback"))


def test_many_readers_see_the_same_history(server: Server, sessions: Sessions, held: Claim) -> None:
    seen: list[list[int]] = []

    def read() -> None:
        with (
            server.client() as client,
            client.stream("GET", f"/v1/jobs/{held.job_id}/events", headers=STREAM) as stream,
        ):
            seen.append(list(_ids(stream.iter_lines())))

    readers = [threading.Thread(target=read) for _ in range(6)]
    for reader in readers:
        reader.start()
    for number in range(20):
        with sessions.begin() as session:
            lifecycle.record(session, held, [Notice(stage="s", message=str(number))])
    with sessions.begin() as session:
        lifecycle.finish(session, held, "digest", [])
    for reader in readers:
        reader.join(20)
    assert seen == [list(range(1, 24))] * 6
