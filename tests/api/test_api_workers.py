"""Which workers are there, what they have, why one takes no job; and nothing of other tenants' jobs."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, text, update

from api import lifecycle
from api.store import hosts, workers
from api.store.models import Host, Worker
from api.store.session import Sessions
from api.store.workers import Capacity

pytestmark = pytest.mark.integration

H200 = Capacity("alder", "cuda", 8, "NVIDIA H200", 141 * 10**9, host_memory_bytes=2 * 10**12, cores=192)
CPU = Capacity("birch", "cpu", host_memory_bytes=64 * 10**9, cores=16)
Beat = Callable[..., None]


@pytest.fixture
def beat(sessions: Sessions) -> Beat:
    def one(worker_id: str, capacity: Capacity = CPU, silent_seconds: int = 0, **state: Any) -> None:
        with sessions.begin() as session:
            workers.beat(session, worker_id, capacity, **state)
            past = func.now() - text(f"interval '{silent_seconds} seconds'")
            session.execute(update(Worker).where(Worker.id == worker_id).values(seen_at=past))

    return one


def listed(client: TestClient) -> dict[str, dict[str, Any]]:
    page = client.get("/v1/workers").json()
    return {worker["id"]: worker for worker in page["data"]}


def test_what_a_worker_has(client: TestClient, beat: Beat) -> None:
    beat("w1", H200, disk_free_bytes=5 * 10**12)
    beat("w2", disk_free_bytes=10**9)
    beat("w2", disk_free_bytes=2 * 10**9)
    found = listed(client)
    had = {name: found["w1"][name] for name in ("host", "device", "gpus", "gpu_kind", "gpu_memory_bytes")}
    assert had == {
        "host": "alder",
        "device": "cuda",
        "gpus": 8,
        "gpu_kind": "NVIDIA H200",
        "gpu_memory_bytes": 141 * 10**9,
    }
    more = {name: found["w1"][name] for name in ("host_memory_bytes", "cores", "disk_free_bytes", "status", "reason")}
    assert more == {
        "host_memory_bytes": 2 * 10**12,
        "cores": 192,
        "disk_free_bytes": 5 * 10**12,
        "status": "idle",
        "reason": "",
    }
    assert found["w2"]["disk_free_bytes"] == 2 * 10**9, "as of the last beat"


def test_who_takes_no_job_says_why_and_who_is_away_comes_last(
    client: TestClient, sessions: Sessions, beat: Beat
) -> None:
    beat("away", Capacity("alder", "cpu"), silent_seconds=120)
    beat("forgotten", silent_seconds=25 * 3600)
    beat("full", unfit="1 bytes free below LATHE_DATA_DIR")
    beat("leaving", draining=True, unfit="also ill")
    beat("distrusted", Capacity("cedar", "cpu"))
    beat("well", Capacity("alder", "cpu"))
    with sessions.begin() as session:
        session.add(Host(name="cedar", quarantined_at=func.now()))
    found = listed(client)
    assert [(name, worker["status"]) for name, worker in found.items()] == [
        ("well", "idle"),
        ("full", "unfit"),
        ("leaving", "draining"),
        ("distrusted", "quarantined"),
        ("away", "away"),
    ]
    assert found["full"]["reason"] == "1 bytes free below LATHE_DATA_DIR"
    assert all(bool(worker["reason"]) == (worker["status"] != "idle") for worker in found.values())
    with sessions.begin() as session:
        hosts.trust(session, "cedar")
    assert listed(client)["distrusted"]["status"] == "idle"


def test_a_job_is_named_to_its_owner_alone(
    client: TestClient, stranger: TestClient, beat: Beat, held: lifecycle.Claim, sessions: Sessions
) -> None:
    beat("w1")
    assert (listed(client)["w1"]["status"], listed(client)["w1"]["job_id"]) == ("busy", held.job_id)
    seen = stranger.get("/v1/workers")
    assert (seen.json()["data"][0]["status"], seen.json()["data"][0]["job_id"]) == ("busy", None)
    assert held.job_id not in seen.text
    with sessions.begin() as session:
        lifecycle.finish(session, held, "d" * 64, [])
    assert listed(client)["w1"]["status"] == "idle"


def test_one_that_runs_no_engine_has_no_device(client: TestClient, beat: Beat) -> None:
    beat("publisher", Capacity("alder"))
    assert listed(client)["publisher"]["device"] is None
