"""From submitting a job to its beginning on an idle worker: PostgreSQL, relay, Valkey, Celery, claim."""

import json
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import psycopg

from benchmarks.running import RECIPE, connected, post, running, service
from lathe.local.valkey import Valkey

ROOT = Path(__file__).resolve().parents[1]
JOBS, WARM_UP = 220, 20
PAUSE_seconds = 0.05
"""Between the end of one job and the next: the worker is idle when a job comes."""
END_seconds = 60.0
WORKER = "-m celery -A worker.app worker -Q gpu -c 1 -n benchmark --without-gossip --without-mingle --without-heartbeat"


def measure_start() -> None:
    """Print the seconds from sending the request to the worker's claim, on one clock."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        redis_url = stack.enter_context(Valkey(Path(name) / "valkey"))
        engine = json.dumps([sys.executable, str(ROOT / "tests" / "worker" / "fake_engine.py")])
        ours = stack.enter_context(
            service(REDIS_URL=redis_url, ENGINE_COMMAND=engine, MODEL_ROOTS=str(ROOT / "models"))
        )
        for words in (["-m", "worker.relay"], WORKER.split()):
            stack.enter_context(running(words, ours.environment))
        database = stack.enter_context(psycopg.connect(ours.environment["LATHE_DATABASE_URL"], autocommit=True))
        client = connected(ours.port)
        took = []
        for _ in range(JOBS):
            sent = time.time()
            job_id = post(client, "/v1/jobs", ours.headers, RECIPE | {"model": {"path": "stdlib-5m"}})["id"]
            took.append(_began(database, job_id) - sent)
            time.sleep(PAUSE_seconds)
    hundredths = statistics.quantiles((1000 * seconds for seconds in took[WARM_UP:]), n=100)
    print("| from the request to the claim, one idle worker | ms |\n| :-- | --: |")
    print(f"| p50 | {hundredths[49]:.0f} |\n| p99 | {hundredths[98]:.0f} |")


def _began(database: psycopg.Connection[tuple[object, ...]], job_id: str) -> float:
    """When the job was claimed, once it is over."""
    deadline = time.monotonic() + END_seconds
    while time.monotonic() < deadline:
        row = database.execute("SELECT started_at, finished_at, status FROM jobs WHERE id = %s", (job_id,)).fetchone()
        if row is not None and row[1] is not None:
            if row[2] != "succeeded" or not isinstance(row[0], datetime):
                raise RuntimeError(f"{job_id} has {row[2]}")
            return row[0].timestamp()
        time.sleep(0.01)
    raise TimeoutError(f"{job_id} has not ended within {END_seconds:.0f} s")
