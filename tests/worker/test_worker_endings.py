"""How an attempt ends when nothing is broken but the job: cancelled, failed, crashed, lying about its output."""

import json
import time

import pytest
from fixtures.waiting import until
from worker_service import Hold, Service, is_running

pytestmark = pytest.mark.integration


@pytest.fixture
def running(service: Service) -> Service:
    service.start_relay()
    service.start_worker()
    return service


def test_a_queued_job_is_cancelled_at_once(service: Service) -> None:
    job_id = service.submit()
    service.cancel(job_id)
    assert service.job(job_id).status == "cancelled"
    service.start_relay()
    service.start_worker()
    until(lambda: "nothing to claim" in service.log("worker"), "the late message")
    assert service.job(job_id).epoch == 0


@pytest.mark.parametrize("wish", ["polite", "stubborn"])
def test_a_running_job_is_cancelled_politely_then_by_force(running: Service, wish: str) -> None:
    hold = Hold.at(running.folder)
    job_id = running.submit(wishes={"hold": hold.path, wish: "yes"})
    engine = hold.engine_pid()
    started = time.monotonic()
    running.cancel(job_id)
    job = running.await_status(job_id, "cancelled")
    assert not is_running(engine)
    assert (time.monotonic() - started >= 1) is (wish == "stubborn")
    assert job.failure is None
    assert running.rows("SELECT status FROM stages ORDER BY position") == [
        ("succeeded",),
        ("cancelled",),
        ("cancelled",),
    ]


def test_what_the_engine_says_is_wrong_is_what_the_owner_reads(running: Service) -> None:
    job_id = running.submit(wishes={"fail": "no text in the data set"})
    job = running.await_status(job_id, "failed")
    assert job.failure is not None
    assert job.failure["code"] == "data_unusable"
    assert job.failure["message"] == "no text in the data set\ufffd"  # NUL, which PostgreSQL refuses
    assert job.attempt == 1


def test_a_crash_is_tried_three_times(running: Service) -> None:
    job_id = running.submit(wishes={"crash": 139})
    job = running.finish_soon(job_id, "failed")
    assert job.attempt == 3
    assert job.failure is not None
    assert job.failure["code"] == "gpu_failed"
    assert "status 139" in job.failure["message"]
    assert "illegal memory access" in job.failure["message"]


def test_an_engine_that_lies_about_its_output_fails(running: Service) -> None:
    job = running.await_status(running.submit(wishes={"no_output": "yes"}), "failed")
    assert job.failure is not None
    assert job.failure["code"] == "artifact_bad"
    assert "manifest.json" in job.failure["message"]


def test_only_fetch_gets_the_owners_token(running: Service) -> None:
    running.add_token("hf_of_the_owner")
    job_id = running.submit(model={"id": "org/model"})
    job = running.await_status(job_id, "succeeded")
    assert next((running.data_dir / "work").glob("*/fetched-with")).read_text() == "hf_of_the_owner"
    assert job.resolved is not None
    assert job.resolved["model"]["revision"] == "c0ffee"
    environment = json.loads((running.output(job_id) / "environment.json").read_text())
    assert "HF_TOKEN" not in environment
    assert {name for name in environment if name.startswith("LATHE_")} == {"LATHE_MODEL_ROOTS"}
    everything = json.dumps(environment)
    for secret in ("hf_of_the_owner", "hf_operator", running.database_url, running.redis_url):
        assert secret not in everything
    log = (running.data_dir / "jobs" / job_id / "1" / "engine.log").read_text()
    assert "downloading with [secret]" in log
    assert "hf_of_the_owner" not in running.log("worker") + log


def test_a_local_job_needs_no_fetch(running: Service) -> None:
    running.add_token("hf_of_the_owner")
    job_id = running.submit()
    running.await_status(job_id, "succeeded")
    assert not list((running.data_dir / "work").glob("*/fetched-with"))
