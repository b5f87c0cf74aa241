"""A whole service on servers of its own, every connection through a proxy: something that can be broken."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import psycopg
from fixtures.proxy import Proxy
from psycopg.rows import dict_row

from lathe.local.postgres import Postgres
from lathe.local.server import free_port
from lathe.local.valkey import Valkey
from migrations import upgrade

SECRET_KEY = "k" * 40
PERIODS = {
    "LEASE_SECONDS": 4,
    "RENEW_SECONDS": 0.7,
    "ISOLATE_SECONDS": 3,
    "PARTITION_KILL_SECONDS": 8,
    "FLUSH_SECONDS": 0.2,
    "RELAY_POLL_SECONDS": 0.3,
    "RECONCILE_SECONDS": 0.5,
    "LEASE_AMNESTY_SECONDS": 3,
    "WATCHDOG_SECONDS": 2,
    "CANCEL_GRACE_SECONDS": 1,
    "DRAIN_GRACE_SECONDS": 2,
    "STALL_SECONDS": '{"starting": 30, "loading": 9}',
    "STACK_DUMP_SECONDS": 0.5,
    "MIN_FREE_BYTES": 0,
}
WORKERS = ("worker-1", "worker-2", "worker-3")
RELAYS = ("relay-1", "relay-2")


@dataclass
class Cluster:
    """Three workers, two relays (each with a reconciler), one worker for short work, one API. Use as a context."""

    folder: Path
    engine: Sequence[str]
    settings: Mapping[str, object] = field(default_factory=dict)

    @property
    def traps(self) -> Path:
        """Where a file makes one fake engine misbehave."""
        return self.folder / "traps"

    def __enter__(self) -> Self:
        self.traps.mkdir()
        self._stack = ExitStack()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.postgres = Postgres(self.folder / "postgres")
        self.valkey = Valkey(self.folder / "valkey")
        database_url = self._stack.enter_context(self.postgres)
        redis_url = self._stack.enter_context(self.valkey)
        upgrade(database_url)
        self._direct_url = database_url
        self.database = self._stack.enter_context(Proxy(urlsplit(database_url).port or 0))
        self.broker = self._stack.enter_context(Proxy(urlsplit(redis_url).port or 0))
        self.api_port = free_port()
        self._environment = self._environ(_through(database_url, self.database), _through(redis_url, self.broker))
        self._key = self._make_key()
        for name in ("api", *RELAYS, "short", *WORKERS):
            self.start(name)
        self._until_ready()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self._processes):
            self.kill(name)
        self._stack.close()

    def start(self, name: str) -> None:
        """Start one of our processes."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, *self._words(name)],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self, name: str) -> None:
        """Kill -9 of a process and its pool; engines have sessions of their own."""
        process = self._processes.pop(name)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a process and its pool."""
        process = self._processes[name]
        if process.poll() is None:
            os.killpg(process.pid, number)

    def ended(self, name: str, seconds: float) -> bool:
        """Wait for a process to end by itself."""
        try:
            self._processes[name].wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def revive(self) -> None:
        """Start again what ended, servers first."""
        self.postgres.revive()
        self.valkey.revive()
        for name, process in list(self._processes.items()):
            if process.poll() is not None:
                self.start(name)

    def rows(self, statement: str, *values: object) -> list[dict[str, Any]]:
        """Look at the database past the proxy, once it answers."""
        deadline = time.monotonic() + 60
        while True:
            try:
                with psycopg.connect(self._direct_url, autocommit=True, row_factory=dict_row) as connection:
                    cursor = connection.execute(statement.encode(), values)
                    return list(cursor.fetchall()) if cursor.description else []
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def call(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Ask the API, as often as it takes to be answered; a POST carries one key all the while."""
        key = {"Idempotency-Key": secrets.token_hex(8)} if method == "POST" else {}
        headers = {"Authorization": f"Bearer {self._key}", **key}
        deadline = time.monotonic() + 120
        while True:
            try:
                url = f"http://127.0.0.1:{self.api_port}{path}"
                answer = httpx.request(method, url, headers=headers, timeout=10, trust_env=False, **more)
                if answer.status_code < 500 and answer.status_code != 429:
                    return answer
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline, f"no answer to {method} {path}\n{self.log('api')[-2000:]}"
            time.sleep(0.2)

    def engines(self) -> list[int]:
        """Process groups of engines, read from the kernel."""
        return [pid for pid, words in _processes() if str(self.folder / "data") in words and "leash" not in words]

    def log(self, name: str) -> str:
        """What a process has written."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def logs(self) -> str:
        """The last of every log, for a failure."""
        return "\n".join(f"--- {path.name}\n{path.read_text()[-2500:]}" for path in sorted(self.folder.glob("*.log")))

    def _words(self, name: str) -> list[str]:
        if name == "api":
            return ["-m", "api"]
        if name in RELAYS:
            return ["-m", "worker.relay"]
        queue = "cpu" if name == "short" else "gpu"
        celery = f"-m celery -A worker.app worker -Q {queue} -c 1 -n {name}-{secrets.token_hex(4)}"
        return [*celery.split(), "--without-gossip", "--without-mingle", "--without-heartbeat"]

    def _environ(self, database_url: str, redis_url: str) -> dict[str, str]:
        named = {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "DATA_DIR": self.folder / "data",
            "SECRET_KEY": SECRET_KEY,
            "ENGINE_COMMAND": " ".join(self.engine),
            "HOST": "127.0.0.1",
            "PORT": self.api_port,
            "MODEL_ROOTS": Path.cwd() / "models",
            "RATE_LIMIT": "100000/second",
            **PERIODS,
            **self.settings,
        }
        return dict(os.environ) | {f"LATHE_{name}": str(value) for name, value in named.items()}

    def _make_key(self) -> str:
        words = [sys.executable, "-m", "api.keys", "create", "--project", "chaos"]
        done = subprocess.run(words, env=self._environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def _until_ready(self) -> None:
        deadline = time.monotonic() + 120
        while not all("worker ready" in self.log(name) for name in (*WORKERS, "short")):
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.2)


def _through(url: str, proxy: Proxy) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{parts.username or ''}:{parts.password}@127.0.0.1:{proxy.port}").geturl()


def _processes() -> Iterator[tuple[int, str]]:
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if " run /" in words:
            yield int(path.name), words
