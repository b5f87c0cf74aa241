"""Everything that can break, broken in random order. `python3 dev.py chaos`; LATHE_CHAOS_SEED repeats a run."""

import hashlib
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos_cluster import Cluster
from chaos_run import Run

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(5400)]
JOBS = int(os.environ.get("LATHE_CHAOS_JOBS", "200"))
FAULTS = int(os.environ.get("LATHE_CHAOS_FAULTS", "300"))
REAL_faults = 12
FAKE = (sys.executable, str(Path(__file__).parents[1] / "worker" / "fake_engine.py"))
REAL = (sys.executable, "-m", "optcore")


@pytest.fixture
def seed() -> int:
    return int(os.environ.get("LATHE_CHAOS_SEED", random.SystemRandom().randrange(10**6)))


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="lathe-chaos-", ignore_cleanup_errors=True) as made:
        Path(made).chmod(0o711)
        yield Path(made)


def _recipe(number: int, **more: Any) -> dict[str, Any]:
    return {
        "model": {"path": "models/stdlib-5m"},
        "calibration": {"dataset": "python-stdlib", "samples": 4, "sequence_length": 64},
        "chain": [{"technique": "ptq", "scheme": "int4_g32", "rounding": "nearest"}],
        "seed": number,
        **more,
    }


def _report(run: Run, seed: int) -> None:
    ends = run.cluster.rows("SELECT status, count(*) AS n FROM jobs GROUP BY status ORDER BY status")
    said = ", ".join(f"{row['n']} {row['status']}" for row in ends)
    attempts = run.cluster.rows("SELECT state, count(*) AS n FROM attempts GROUP BY state ORDER BY state")
    tried = ", ".join(f"{row['n']} {row['state']}" for row in attempts)
    print(f"\nseed {seed}: {run.faults} faults over {len(run.jobs)} jobs: {said}; {run.retried} retried by their owner")
    print(f"attempts: {tried}; invariants held {run.invariants.checks} times")
    print(run.table())


def test_no_job_is_lost_and_none_has_two_results(folder: Path, seed: int) -> None:
    dice = random.Random(seed)
    print(f"seed {seed}")

    def document(number: int) -> dict[str, Any]:
        return _recipe(number, metadata={"sleep": f"{dice.uniform(0.5, 5):.2f}", "traps": str(folder / "traps")})

    with Cluster(folder, FAKE) as cluster:
        run = Run(cluster, dice, JOBS, FAULTS, document)
        run.go()
        _report(run, seed)
        rows = cluster.rows("SELECT id, status, artifact_digest, recipe FROM jobs")
        assert {row["id"] for row in rows} == set(run.jobs), "accepted is never lost, and one request is one job"
        for row in rows:
            expected = "cancelled" if row["id"] in run.cancelled and row["status"] == "cancelled" else "succeeded"
            assert row["status"] == expected, row
            if expected == "succeeded":
                assert row["artifact_digest"] == _digest(row["recipe"])
        assert not cluster.engines(), "no engine outlives its job"


def _digest(recipe: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([recipe["model"], recipe["seed"]], sort_keys=True).encode()).hexdigest()


def test_real_jobs_end_with_the_bytes_of_undisturbed_ones(folder: Path, seed: int) -> None:
    digests = {}
    for name, faults in (("quiet", 0), ("broken", REAL_faults)):
        (folder / name).mkdir(mode=0o711)
        with Cluster(folder / name, REAL, {"STALL_SECONDS": "{}"}) as cluster:
            run = Run(cluster, random.Random(seed), 5, faults, _recipe, restless=False)
            run.go()
            if faults:
                _report(run, seed)
            ended = cluster.rows("SELECT artifact_digest, recipe FROM jobs WHERE status = 'succeeded'")
            digests[name] = {row["recipe"]["seed"]: row["artifact_digest"] for row in ended}
    assert len(digests["quiet"]) == 5
    assert digests["broken"] == digests["quiet"]
