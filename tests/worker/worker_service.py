"""A whole service for a test: a real worker, a real relay, the fake engine, on a database of their own."""

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from fixtures.waiting import until
from sqlalchemy import text

from api import lifecycle
from api.store import credentials, events, jobs, webhooks
from api.store.models import Event, Job
from api.store.session import make_engine, make_sessions
from api.vault import Vault
from optcore.recipe import Recipe, recipe_from

OWNER = "acme"
ENGINE = (sys.executable, str(Path(__file__).with_name("fake_engine.py")))
SECRET_KEY = "k" * 40
PERIODS = {
    "RENEW_SECONDS": 0.5,
    "FLUSH_SECONDS": 0.1,
    "RELAY_POLL_SECONDS": 0.2,
    "RECONCILE_SECONDS": 0.3,
    "WATCHDOG_SECONDS": 2,
    "LEASE_AMNESTY_SECONDS": 0.5,
    "CANCEL_GRACE_SECONDS": 1,
    "DRAIN_GRACE_SECONDS": 2,
}


@dataclass
class Service:
    """Starts and ends processes, and looks at the world through the database alone."""

    database_url: str
    redis_url: str
    folder: Path
    settings: dict[str, object] = field(default_factory=dict)
    environ: dict[str, str] = field(default_factory=dict)
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    launcher: tuple[str, ...] = ()
    """Words in front of a process's command line, which put it somewhere else."""

    def __post_init__(self) -> None:
        self.engine = make_engine(self.database_url, pool_size=2)
        self.sessions = make_sessions(self.engine)
        self.vault = Vault(SECRET_KEY)
        self.data_dir = self.folder / "data"

    def environment(self) -> dict[str, str]:
        named = {
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "DATA_DIR": self.data_dir,
            "SECRET_KEY": SECRET_KEY,
            "ENGINE_COMMAND": json.dumps(ENGINE),
            "ALLOW_PRIVATE_WEBHOOKS": "127.0.0.1",
            **PERIODS,
            **self.settings,
        }
        ours = {f"LATHE_{name}": str(value) for name, value in named.items()}
        return dict(os.environ) | ours | {"HF_TOKEN": "hf_operator"} | self.environ

    def start_relay(self, name: str = "relay") -> None:
        self.start(name, ["-m", "worker.relay"])

    def start_worker(self, name: str = "worker", *, queues: str = "gpu,cpu", ready: bool = True) -> None:
        words = f"-m celery -A worker.app worker -Q {queues} -c 1 -n {name}-{secrets.token_hex(4)}"
        self.start(name, [*words.split(), "--without-gossip", "--without-mingle", "--without-heartbeat"])
        if ready:
            until(lambda: self._is_ready(name), f"{name} to be ready")

    def _is_ready(self, name: str) -> bool:
        assert self.processes[name].poll() is None, self.log(name)
        return "worker ready" in self.log(name)

    def start(self, name: str, words: list[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*self.launcher, sys.executable, *words],
                env=self.environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def kill(self, name: str) -> None:
        """Kill -9 of the process and its pool; the engine has a session of its own."""
        process = self.processes.pop(name)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def signal(self, name: str, number: signal.Signals) -> None:
        os.killpg(self.processes[name].pid, number)

    def close(self) -> None:
        for name in list(self.processes):
            self.kill(name)
        self.engine.dispose()

    def add_project(self) -> None:
        """For a database that is not the tests' own."""
        self.rows("INSERT INTO projects (id, name) VALUES (:id, :id)", id=OWNER)

    def submit(self, *, wishes: Mapping[str, object] | None = None, **more: Any) -> str:
        with self.sessions.begin() as session:
            return lifecycle.submit(session, OWNER, recipe(wishes or {}, **more)).id

    def cancel(self, job_id: str) -> None:
        with self.sessions.begin() as session:
            lifecycle.request_cancel(session, OWNER, job_id)

    def job(self, job_id: str) -> Job:
        with self.sessions() as session:
            found = jobs.find(session, job_id)
        assert found is not None
        return found

    def events(self, job_id: str) -> list[Event]:
        with self.sessions() as session:
            return list(events.after(session, job_id, 0, 10_000))

    def rows(self, statement: str, **values: object) -> list[Any]:
        with self.sessions.begin() as session:
            result = session.execute(text(statement), values)
            return list(result.all()) if result.returns_rows else []

    def await_status(self, job_id: str, *statuses: str, timeout_seconds: float = 30) -> Job:
        def probe() -> Job | None:
            job = self.job(job_id)
            return job if job.status in statuses else None

        try:
            return until(probe, f"{job_id} to be {statuses}", timeout_seconds)
        except AssertionError as error:
            logs = "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in self.folder.glob("*.log"))
            raise AssertionError(f"{error}; it is {self.job(job_id).status}\n{logs}") from None

    def hurry(self, job_id: str) -> None:
        """Let the waiting time of a queued job pass."""
        self.rows("UPDATE outbox SET available_at = now() WHERE payload->>'job_id' = :id", id=job_id)
        self.rows("UPDATE jobs SET not_before = now() WHERE id = :id AND status = 'queued'", id=job_id)

    def lose_lease(self, job_id: str) -> None:
        """Let the lease's time pass."""
        self.rows(
            "UPDATE jobs SET lease_until = now() - interval '1 second' WHERE id = :id AND status = 'running'", id=job_id
        )

    def finish_soon(self, job_id: str, *statuses: str) -> Job:
        """The job at its end, every back-off skipped."""

        def probe() -> bool:
            self.hurry(job_id)
            return self.job(job_id).status in (statuses or ("succeeded",))

        until(probe, f"{job_id} to end\n{self.log('worker')[-3000:]}", 40)
        return self.job(job_id)

    def add_receiver(self, url: str) -> str:
        """A webhook endpoint; its secret."""
        with self.sessions.begin() as session:
            return webhooks.create_endpoint(
                session, self.vault, OWNER, url, ["job.succeeded", "job.failed", "job.cancelled"]
            )[1]

    def add_token(self, token: str, name: str = "default") -> None:
        with self.sessions.begin() as session:
            credentials.put(session, self.vault, OWNER, name, token)

    def flush_broker(self) -> None:
        with redis.Redis.from_url(self.redis_url) as client:
            client.flushall()

    def output(self, job_id: str) -> Path:
        return self.data_dir / "artifacts" / job_id / str(self.job(job_id).epoch)

    def stage_runs(self) -> list[str]:
        """Stages that an engine of this service really ran."""
        return next((self.data_dir / "work").glob("*/stages/runs.log")).read_text().split()


def recipe(wishes: Mapping[str, object], **more: Any) -> Recipe:
    document = {
        "model": {"path": "models/stdlib-5m"},
        "calibration": {"dataset": "python-stdlib"},
        "chain": [{"technique": "ptq", "scheme": "nvfp4"}],
        "metadata": {key: str(value) for key, value in wishes.items()},
    }
    return recipe_from(document | more)


@dataclass
class Hold:
    """A file that keeps the fake engine in its second stage for as long as it exists."""

    path: Path

    @classmethod
    def at(cls, folder: Path) -> "Hold":
        hold = cls(folder / f"hold-{secrets.token_hex(4)}")
        hold.path.touch()
        return hold

    def engine_pid(self) -> int:
        """The engine that is held, once there is one."""
        pid_file = self.path.with_suffix(".pid")
        return until(lambda: pid_file.exists() and int(pid_file.read_text() or 0), "an engine to be held")

    def forget_engine(self) -> None:
        self.path.with_suffix(".pid").unlink(missing_ok=True)

    def release(self) -> None:
        self.path.unlink()


def is_running(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
