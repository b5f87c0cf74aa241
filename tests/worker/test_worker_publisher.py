"""The push after the job: through the real Hub client, tried again, never at the cost of the result."""

from typing import Any

import pytest
from worker_service import Service, until

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
    hub.fail("POST /api/models/.*/commit/", 412)
    job_id = running.submit(publish={"repo_id": "me/again"})
    job = _publish_status(running, job_id, "published", "failed")
    assert job.status == "succeeded"
    assert job.publish_status == "published"
    assert job.publish_epoch == 2


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
