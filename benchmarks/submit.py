"""Submitting a job beside the floor: a bare FastAPI application with one INSERT, on the same durable PostgreSQL."""

import http.client
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lathe.local.postgres import Postgres
from lathe.local.server import free_port
from migrations import upgrade

BLOCKS, BLOCK = 6, 100
"""The two take turns, so many requests each; the first turn warms up."""
START_seconds = 60.0
RECIPE = {
    "model": {"id": "org/model"},
    "calibration": {"dataset": "python-stdlib"},
    "chain": [{"technique": "ptq", "scheme": "nvfp4"}],
}


def compare_submit() -> None:
    """Print the median seconds of one client's requests to each, and their ratio."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o711)
        database_url = stack.enter_context(Postgres(folder / "postgres"))
        upgrade(database_url)
        bare, ours = free_port(), free_port()
        environment = _environment(database_url, folder, bare, ours)
        key = _key(environment)
        for module in ("benchmarks.bare_service", "api"):
            stack.enter_context(_running(module, environment))
        ours_headers = {"Authorization": f"Bearer {key}"}
        clients = {"bare": (_connected(bare), "/", {}), "ours": (_connected(ours), "/v1/jobs", ours_headers)}
        took: dict[str, list[float]] = {name: [] for name in clients}
        for block in range(BLOCKS):
            for name, (client, path, headers) in clients.items():
                seconds = [_post(client, path, headers) for _ in range(BLOCK)]
                took[name] += seconds if block else []
        medians = {name: 1000 * statistics.median(seconds) for name, seconds in took.items()}
        print("| one client, PostgreSQL with fsync | p50, ms |\n| :-- | --: |")
        print(f"| bare FastAPI, one INSERT | {medians['bare']:.2f} |\n| submit a job | {medians['ours']:.2f} |")
        print(f"| ratio | {medians['ours'] / medians['bare']:.1f} |")


def _environment(database_url: str, folder: Path, bare: int, ours: int) -> dict[str, str]:
    return dict(os.environ) | {
        "BARE_DATABASE_URL": database_url,
        "BARE_PORT": str(bare),
        "LATHE_DATABASE_URL": database_url,
        "LATHE_DATA_DIR": str(folder / "data"),
        "LATHE_SECRET_KEY": secrets.token_urlsafe(48),
        "LATHE_HOST": "127.0.0.1",
        "LATHE_PORT": str(ours),
        "LATHE_RATE_LIMIT": "1000000/second",
        "LATHE_LOG_LEVEL": "WARNING",
    }


def _key(environment: Mapping[str, str]) -> str:
    words = [sys.executable, "-m", "api.keys", "create", "--project", "benchmark"]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout.strip()


@contextmanager
def _running(module: str, environment: Mapping[str, str]) -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-m", module], env=environment, stderr=subprocess.DEVNULL) as process:
        yield
        process.terminate()


def _connected(port: int) -> http.client.HTTPConnection:
    """A connection that stays open, once somebody listens."""
    deadline = time.monotonic() + START_seconds
    while True:
        client = http.client.HTTPConnection("127.0.0.1", port)
        try:
            client.connect()
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return client


def _post(client: http.client.HTTPConnection, path: str, headers: Mapping[str, str]) -> float:
    own = {"Content-Type": "application/json", "Idempotency-Key": secrets.token_hex(8)}
    started = time.perf_counter()
    client.request("POST", path, json.dumps(RECIPE), own | dict(headers))
    answer = client.getresponse()
    answer.read()
    seconds = time.perf_counter() - started
    if answer.status != http.client.CREATED:
        raise RuntimeError(f"POST {path}: {answer.status}")
    return seconds
