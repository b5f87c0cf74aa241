"""The whole service on one machine: two servers, the API, the relay and the workers, as children of this process."""

import fcntl
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from signal import SIGKILL
from types import TracebackType
from typing import Self

from lathe.client import Client
from lathe.errors import APIError, ConnectionFailed, LatheError, Unauthorized
from lathe.local.folder import write_private
from lathe.local.program import Program
from lathe.local.server import free_port
from lathe.local.servers import Servers
from lathe.local.supervisor import Supervisor
from lathe.local.tether import tethered
from optcore.extras import how_to_install

SERVER_MODULES = ("fastapi", "uvicorn", "sqlalchemy", "alembic", "celery")
SHORT_seconds = 120.0
LOOK_seconds = 0.1

# `-P`: a folder named `api` or `worker` where `lathe up` is typed must not stand in for ours.
PYTHON = (sys.executable, "-P")
MIGRATE = """
import api, pathlib
from alembic import command, config
here = config.Config()
here.set_main_option("script_location", str(pathlib.Path(api.__file__).parents[1] / "migrations"))
command.upgrade(here, "head")
"""
CELERY = "import sys; from worker.app import app; app.worker_main(sys.argv[1:])"


class Stack:
    """`with Stack(folder) as stack:` gives `stack.url` and `stack.api_key` of a service that can take jobs.

    `environment` goes on top of this process's own for everything that is started; LATHE_DATABASE_URL and
    LATHE_REDIS_URL there replace the embedded servers. Port 0 takes a free one. Raises `LatheError` or
    `LocalServerError`. When it ends, however it ends, nothing that it started goes on.
    """

    url: str
    api_key: str

    def __init__(
        self,
        data_dir: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        environment: Mapping[str, str] | None = None,
        start_seconds: float = 120.0,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self._host = host
        self._port = port
        self._given = {**os.environ, **(environment or {})}
        self._start_seconds = start_seconds
        self._say = say
        self._open = ExitStack()

    def __enter__(self) -> Self:
        _need_server()
        with ExitStack() as stack:
            self._take_folder(stack)
            servers = stack.enter_context(Servers(self.data_dir / "servers", environ=self._given))
            self._choose_address()
            environment = self._environment(servers)
            self._say("bringing the database up to date")
            self._run("the migration", ["-c", MIGRATE], environment)
            self._say("starting the API, the relay and two workers")
            programs = self._programs(environment)
            stack.enter_context(Supervisor(programs, servers.revive, self._say))
            self._wait_until_ready(programs)
            self.api_key = self._find_or_make_key(environment)
            self._leave_address(stack)
            self._open = stack.pop_all()
        self.programs = programs
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def _take_folder(self, stack: ExitStack) -> None:
        (self.data_dir / "logs").mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = stack.enter_context((self.data_dir / "stack.lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LatheError(
                f"another `lathe up` runs in {self.data_dir}", remedy="stop it, or give another folder with --data"
            ) from error

    def _choose_address(self) -> None:
        port = self._port or free_port()
        with socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self._host, port))
            except OSError as error:
                raise LatheError(
                    f"cannot listen on {self._host}:{port}: {error.strerror}", remedy="give another port with --port"
                ) from error
        self._port = port
        reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)  # noqa: S104  compared, not bound
        self.url = f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"

    def _environment(self, servers: Servers) -> dict[str, str]:
        kept = {name: value for name, value in self._given.items() if name not in ("LATHE_API_KEY", "LATHE_URL")}
        fixed = {
            "LATHE_DATABASE_URL": servers.database_url,
            "LATHE_REDIS_URL": servers.redis_url,
            "LATHE_DATA_DIR": str(self.data_dir / "data"),
            "LATHE_HOST": self._host,
            "LATHE_PORT": str(self._port),
            "PYTHONUNBUFFERED": "1",
        }
        return {"LATHE_SECRET_KEY": self._secret_key(), **kept, **fixed}

    def _secret_key(self) -> str:
        path = self.data_dir / "secret_key"
        if not path.exists():
            write_private(path, secrets.token_urlsafe(48))
        return path.read_text()

    def _programs(self, environment: Mapping[str, str]) -> tuple[Program, ...]:
        (self.data_dir / "data").mkdir(exist_ok=True, mode=0o700)

        def program(name: str, *arguments: str, ready_word: str = "", grace_seconds: float = 10.0) -> Program:
            return Program(
                name,
                [*PYTHON, *arguments],
                environment,
                folder=Path.cwd(),  # what a relative path in a recipe is relative to
                log=self.data_dir / "logs" / f"{name}.log",
                ready_word=ready_word,
                grace_seconds=grace_seconds,
            )

        def worker(queue: str, processes: int) -> Program:
            quiet = ["--without-gossip", "--without-mingle", "-n", f"{queue}@%h"]
            arguments = ["worker", "-Q", queue, "-P", "prefork", "-c", str(processes), "--disable-prefetch", *quiet]
            # It gives a running job back before it ends.
            return program(f"worker-{queue}", "-c", CELERY, *arguments, ready_word="worker ready", grace_seconds=30.0)

        return program("api", "-m", "api"), program("relay", "-m", "worker.relay"), worker("gpu", 1), worker("cpu", 2)

    def _wait_until_ready(self, programs: tuple[Program, ...]) -> None:
        deadline = time.monotonic() + self._start_seconds
        with Client(self.url, max_retries=0, timeout=5.0) as client:
            while not (all(program.is_ready() for program in programs) and _is_healthy(client)):
                self._give_up_if_dead(programs)
                if time.monotonic() > deadline:
                    late = [program.name for program in programs if not program.is_ready()] or ["the API"]
                    raise LatheError(
                        f"{', '.join(late)} not ready after {self._start_seconds:g} s",
                        remedy=f"read the logs in {self.data_dir / 'logs'}",
                    )
                time.sleep(LOOK_seconds)

    def _give_up_if_dead(self, programs: tuple[Program, ...]) -> None:
        for program in programs:
            if program.ends:
                raise LatheError(
                    f"{program.name} ended while it started:\n{program.last_words()}", remedy=f"read {program.log}"
                )

    def _find_or_make_key(self, environment: Mapping[str, str]) -> str:
        path = self.data_dir / "api_key"
        if path.exists() and self._is_accepted(key := path.read_text()):
            return key
        printed = self._run("api.keys", ["-m", "api.keys", "create", "--project", "local"], environment)
        found = re.search(r"lk_[\w-]{43}", printed)
        if found is None:
            raise LatheError("the service made no API key", remedy="see `python -m api.keys create --help`")
        write_private(path, found.group())
        return found.group()

    def _is_accepted(self, key: str) -> bool:
        """Not so when the folder's key belongs to another database."""
        with Client(self.url, key) as client:
            try:
                next(client.jobs.list(page_size=1), None)
            except Unauthorized:
                return False
        return True

    def _leave_address(self, stack: ExitStack) -> None:
        """For the `lathe` of another terminal (0600)."""
        path = self.data_dir / "client.json"
        write_private(path, json.dumps({"url": self.url, "api_key": self.api_key}))
        stack.callback(path.unlink, missing_ok=True)

    def _run(self, what: str, arguments: list[str], environment: Mapping[str, str]) -> str:
        """A short program of ours, to its end; what it printed."""
        done = subprocess.run(
            tethered([*PYTHON, *arguments], folder=Path.cwd(), death_signal=SIGKILL),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SHORT_seconds,
            check=False,
        )
        if done.returncode != 0:
            last = "\n".join(done.stderr.strip().splitlines()[-12:])
            raise LatheError(f"{what} failed:\n{last}", remedy="check the database that is used")
        return done.stdout


def _is_healthy(client: Client) -> bool:
    try:
        return client.health().status == "ok"
    except (ConnectionFailed, APIError):
        return False


def _need_server() -> None:
    missing = [name for name in SERVER_MODULES if find_spec(name) is None]
    if missing:
        raise LatheError(
            f"the service is not installed here: no {', '.join(missing)}",
            remedy=how_to_install("worker", "engine", "embedded"),
        )
