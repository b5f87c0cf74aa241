"""A service without a broker: two processes that look for work, and lose nothing but a moment."""

import signal
from typing import Any

import pytest
from fixtures.waiting import until
from worker_service import Hold, Service

pytestmark = pytest.mark.integration


@pytest.fixture
def polling(service: Service) -> Service:
    service.redis_url = "redis://127.0.0.1:9/0"
    for kind in ("gpu", "cpu"):
        service.start(f"poller-{kind}", ["-m", "worker.poller", kind])
    until(lambda: all("worker ready" in service.log(f"poller-{kind}") for kind in ("gpu", "cpu")), "both to be ready")
    return service


def test_jobs_run_and_receivers_hear_of_them(polling: Service, receiver: Any) -> None:
    polling.add_receiver(receiver.url)
    jobs = [polling.submit(seed=seed) for seed in range(2)]
    for job_id in jobs:
        assert polling.await_status(job_id, "succeeded").attempt == 1
    until(lambda: len(receiver.requests) == 2, "both messages")
    assert {row[0] for row in polling.rows("SELECT device FROM workers")} == {"cpu", None}
    [machine] = polling.rows("SELECT host_memory_bytes, cores, disk_free_bytes FROM workers WHERE device = 'cpu'")
    assert all(value > 0 for value in machine)


def test_a_poller_that_is_told_to_stop_hands_its_job_back(polling: Service) -> None:
    hold = Hold.at(polling.folder)
    job_id = polling.submit(wishes={"hold": hold.path})
    hold.engine_pid()
    polling.signal("poller-gpu", signal.SIGTERM)
    polling.await_status(job_id, "queued")
    assert polling.processes["poller-gpu"].wait(20) == 0
    assert polling.rows("SELECT state FROM attempts") == [("released",)]
