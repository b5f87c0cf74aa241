"""The push after the job: through the real Hub client, tried again, never at the cost of the result."""

import re
from typing import Any

import pytest
from fixtures.waiting import until
from worker_service import Service

pytestmark = pytest.mark.integration


def _publish_status(service: Service, job_id: str, *statuses: str) -> Any:
    def probe() -> Any:
        service.hurry(job_id)
        job = service.job(job_id)
        return job if job.publish_status in statuses else None

    try:
        return until(probe, f"the push to be {statuses}", 20)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{service.log('worker')[-3000:]}") from None


@pytest.fixture
def running(service: Service, hub: Any) -> Service:
    service.environ |= {"HF_ENDPOINT": hub.url}
    service.start_relay()
    service.start_worker()
    return service


def test_the_result_is_pushed_after_the_job(running: Service, hub: Any) -> None:
    running.add_token(hub.environment["HF_TOKEN"], "hub-main")
    job_id = running.submit(publish={"repo_id": "me/result", "credential": "hub-main"})
    job = _publish_status(running, job_id, "published", "failed")
    assert job.publish_failure is None
    assert job.publish_url.startswith(f"{hub.url}/me/result/tree/")
    info = hub.api().model_info("me/result", revision=job.publish_commit)
    assert info.private
    assert {"config.json", "manifest.json", "sub/a.txt"} <= {file.rfilename for file in info.siblings}
    assert hub.environment["HF_TOKEN"] not in running.log("worker")


def test_a_push_is_tried_again_and_the_job_stays_succeeded(running: Service, hub: Any) -> None:
    running.add_token(hub.environment["HF_TOKEN"])
    hub.fail("POST /api/models/.*/commit/", 503, headers={"Retry-After": "900"})
    job_id = running.submit(publish={"repo_id": "me/again"})
    job = _publish_status(running, job_id, "published", "failed")
    assert job.status == "succeeded"
    assert job.publish_status == "published"
    assert job.publish_epoch == 2
    assert job.publish_failure is None


@pytest.mark.parametrize("line", ["POST .*/preupload/", "POST .*/commit/main", "POST .*/discussions/1/merge"])
def test_a_worker_that_is_lost_in_the_middle_costs_a_try_and_nothing_twice(
    running: Service, hub: Any, line: str
) -> None:
    running.add_token(hub.environment["HF_TOKEN"])
    hub.fail(line, 200, delay_seconds=3)
    job_id = running.submit(publish={"repo_id": "me/lost"})
    until(lambda: [one for one in hub.requests if re.search(line, one)], f"a request {line}", 20)
    running.kill("worker")
    running.rows("UPDATE jobs SET publish_wake_at = now() - interval '1 second' WHERE id = :id", id=job_id)
    running.start_worker()
    job = _publish_status(running, job_id, "published", "failed")
    assert (job.publish_status, job.publish_epoch) == ("published", 2)
    statuses = [one.status for one in hub.api().get_repo_discussions("me/lost")]
    assert statuses.count("merged") == 1
    assert [one.title.startswith("Add") for one in hub.api().list_repo_commits("me/lost")] == [True, False]
    assert hub.api().model_info("me/lost").sha == job.publish_commit


def test_two_jobs_for_one_repository_wait_their_turn(running: Service, hub: Any) -> None:
    running.add_token(hub.environment["HF_TOKEN"])
    running.start_worker("second")
    job_ids = [running.submit(publish={"repo_id": "me/shared"}, seed=seed) for seed in range(4)]
    done = [_publish_status(running, job_id, "published", "failed") for job_id in job_ids]
    assert [(job.publish_status, job.publish_attempt, job.publish_epoch) for job in done] == [("published", 1, 1)] * 4
    assert {one.status for one in hub.api().get_repo_discussions("me/shared")} == {"merged"}
    assert len(hub.api().list_repo_commits("me/shared")) == 5


def test_a_missing_credential_fails_the_push_and_not_the_job(running: Service) -> None:
    job_id = running.submit(publish={"repo_id": "me/none", "credential": "absent"})
    job = _publish_status(running, job_id, "published", "failed")
    assert job.status == "succeeded"
    assert job.publish_failure["code"] == "credential_missing"
    assert job.publish_failure["field"] == "/publish/credential"


def test_an_artifact_that_is_gone_changes_nothing_on_the_hub(running: Service, hub: Any) -> None:
    """An empty folder published as it is would delete the weights that the repository has."""
    running.add_token(hub.environment["HF_TOKEN"])
    hub.put("me/kept", {"model.safetensors": b"x" * 100, "config.json": "{}"}, private=True)
    before = hub.api().model_info("me/kept").sha
    hub.fail("POST /api/repos/create", 503, times=50)
    job_id = running.submit(publish={"repo_id": "me/kept"})
    until(lambda: running.job(job_id).status == "succeeded" and running.job(job_id), "the job to end", 20)
    for weights in (running.data_dir / "artifacts" / job_id).rglob("*"):
        if weights.is_file():
            weights.unlink()
    job = _publish_status(running, job_id, "failed")
    assert job.publish_failure["code"] == "artifact_bad"
    assert hub.api().model_info("me/kept").sha == before
