"""The service as it is deployed, on a durable PostgreSQL of its own: what the benchmarks of it measure."""

import http.client
import json
import os
import resource
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from lathe.local.postgres import Postgres
from lathe.local.server import free_port
from migrations import upgrade

START_seconds = 60.0
RECIPE = {
    "model": {"id": "org/model"},
    "calibration": {"dataset": "python-stdlib"},
    "chain": [{"technique": "ptq", "scheme": "nvfp4"}],
}


@dataclass(frozen=True)
class Service:
    """An API that runs, and what its processes are told."""

    environment: Mapping[str, str]
    port: int
    key: str

    @property
    def headers(self) -> dict[str, str]:
        """Of a caller that may do everything."""
        return {"Authorization": f"Bearer {self.key}"}


@contextmanager
def service(**more: str) -> Iterator[Service]:
    """Start one; `more` are further `LATHE_` settings."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o711)
        database_url = stack.enter_context(Postgres(folder / "postgres"))
        upgrade(database_url)
        settings = {
            "DATABASE_URL": database_url,
            "DATA_DIR": str(folder / "data"),
            "SECRET_KEY": secrets.token_urlsafe(48),
            "HOST": "127.0.0.1",
            "PORT": str(free_port()),
            "RATE_LIMIT": "1000000/second",
            "LOG_LEVEL": "WARNING",
            **more,
        }
        environment = dict(os.environ) | {f"LATHE_{name}": value for name, value in settings.items()}
        words = [sys.executable, "-m", "api.keys", "create", "--project", "benchmark"]
        key = subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout.strip()
        stack.enter_context(running(["-m", "api"], environment))
        yield Service(environment, int(settings["PORT"]), key)


@contextmanager
def running(words: Sequence[str], environment: Mapping[str, str]) -> Iterator[None]:
    """Run Python with these words meanwhile."""
    quiet = subprocess.DEVNULL
    with subprocess.Popen([sys.executable, *words], env=environment, stdout=quiet, stderr=quiet) as process:
        try:
            yield
        finally:
            process.terminate()


def connected(port: int) -> http.client.HTTPConnection:
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


def post(
    client: http.client.HTTPConnection, path: str, headers: Mapping[str, str], document: Mapping[str, Any] = RECIPE
) -> dict[str, Any]:
    """Post a document, as the SDK does, with a key of its own: the answer."""
    own = {"Content-Type": "application/json", "Idempotency-Key": secrets.token_hex(8)}
    client.request("POST", path, json.dumps(document), own | dict(headers))
    answer = client.getresponse()
    body: dict[str, Any] = json.loads(answer.read())
    if answer.status != http.client.CREATED:
        raise RuntimeError(f"POST {path}: {answer.status} {body}")
    return body


def signed_in(client: http.client.HTTPConnection, ours: Service) -> dict[str, str]:
    """The cookie of a dashboard's session."""
    form = {"Content-Type": "application/x-www-form-urlencoded", "Origin": f"http://127.0.0.1:{ours.port}"}
    client.request("POST", "/sign-in", urlencode({"key": ours.key}), form)
    answer = client.getresponse()
    answer.read()
    return {"Cookie": (answer.getheader("set-cookie") or "").partition(";")[0]}
