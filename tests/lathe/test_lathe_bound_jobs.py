"""A job that knows its client: what it asks for, and what it is as a value."""

import asyncio
import copy
import json
import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted_server import Handler, Script, cut, job_document, page, problem, scripted, status

import lathe
from lathe import _retry, models

JOB = "GET /v1/jobs/job_1"
REPORT = {
    "measurements": [
        {
            "name": "bytes",
            "title": "Size",
            "unit": "bytes",
            "source": 10_000_000,
            "result": 3_000_000,
            "better": "lower",
        },
        {"name": "kl", "title": "KL <b>", "source": None, "baseline": 0.2, "result": 0.1, "better": "lower"},
        {"name": "later", "odd": True},
    ],
    "more": 1,
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    monkeypatch.setattr(_retry, "START_seconds", 0.01)
    with scripted() as script:
        yield script.on(JOB, status(200, job_document()))


@pytest.fixture
def client(server: Script) -> Iterator[lathe.Client]:
    with lathe.Client(server.url, "lk_secret") as client:
        yield client


def _asked(server: Script) -> list[str]:
    return [f"{method} {path}" for method, path, _, _ in server.requests]


def _answer_everything(server: Script) -> None:
    for verb in ("cancel", "pause", "resume", "retry", "publish"):
        server.on(f"POST /v1/jobs/job_1/{verb}", status(200, job_document()))
    for name in ("events", "logs", "metrics", "artifacts"):
        server.on(f"{JOB}/{name}", status(200, page()))
    server.on(f"{JOB}/report", status(200, REPORT)).on(f"{JOB}/recipe", status(200, b"seed: 7"))
    server.on("DELETE /v1/jobs/job_1", status(204))
    server.on("POST /v1/jobs", status(201, job_document()))
    server.on("GET /v1/jobs", status(200, page(job_document())))


EVERYTHING = [
    "POST /v1/jobs",
    *(f"POST /v1/jobs/job_1/{verb}" for verb in ("cancel", "pause", "resume", "retry", "publish")),
    JOB,
    *(
        f"{JOB}/{name}"
        for name in ("events", "logs", "metrics", "report", "report", "recipe", "artifacts", "artifacts")
    ),
    "DELETE /v1/jobs/job_1",
]


def test_a_job_does_what_the_client_does_with_its_id(server: Script, client: lathe.Client, tmp_path: Path) -> None:
    _answer_everything(server)
    job: lathe.Job = client.jobs.create({})
    for changed in (job.cancel(), job.pause(), job.resume(), job.retry(), job.push_to_hub({"repo_id": "me/x"})):
        assert changed == job
    assert job.refresh() == job
    assert (list(job.events()), list(job.logs()), job.metrics(), job.report()) == ([], [], (), REPORT)
    assert job.measurements()["bytes"].result == 3_000_000
    assert (job.pinned_recipe(), list(job.files()), job.download(tmp_path)) == ("seed: 7", [], ())
    job.delete()
    assert _asked(server) == EVERYTHING
    assert json.loads(server.requests[5][3]) == {"repo_id": "me/x"}
    assert [type(each) for each in client.jobs.list()] == [lathe.Job]


def test_the_async_job_does_the_same(server: Script, tmp_path: Path) -> None:
    _answer_everything(server)

    async def use() -> None:
        async with lathe.AsyncClient(server.url) as client:
            job: lathe.AsyncJob = await client.jobs.create({})
            for change in (job.cancel, job.pause, job.resume, job.retry, job.push_to_hub):
                assert await change() == job
            assert await job.refresh() == job
            assert [event async for event in job.events()] == []
            assert [chunk async for chunk in job.logs()] == []
            assert await job.metrics() == ()
            assert await job.report() == REPORT
            assert (await job.measurements())["kl"].result == 0.1
            assert await job.pinned_recipe() == "seed: 7"
            assert [file async for file in job.files()] == []
            assert await job.download(tmp_path) == ()
            await job.delete()
            assert [type(each) async for each in client.jobs.list()] == [lathe.AsyncJob]

    asyncio.run(use())
    assert _asked(server)[: len(EVERYTHING)] == EVERYTHING


def test_a_job_is_a_value_that_keeps_no_secret(server: Script, client: lathe.Client) -> None:
    job = client.jobs.get("job_1")
    with lathe.Client(server.url) as other:
        assert other.jobs.get("job_1") == job
    assert isinstance(job, models.Job)
    assert job.model_dump() == models.Job.model_validate(job_document()).model_dump()
    assert copy.deepcopy(job).refresh() == job.model_copy(deep=True).refresh() == job
    pickled = pickle.dumps(job)
    assert "lk_secret" not in repr(job) + str(job) + job.model_dump_json()
    assert b"lk_secret" not in pickled
    again = pickle.loads(pickled)
    assert again == job
    with pytest.raises(lathe.LatheError, match="tied to no client") as raised:
        again.refresh()
    assert "client.jobs.get" in raised.value.remedy
    with pytest.raises(Exception, match="frozen"):
        job.status = "failed"  # type: ignore[misc]


def test_waiting_answers_the_job_as_it_ended(server: Script, client: lathe.Client) -> None:
    server.on(JOB, status(200, job_document()), status(200, job_document()), status(200, job_document(status="failed")))
    job = client.jobs.get("job_1")
    assert job.wait(poll_interval=0.01).status == "failed"
    with pytest.raises(lathe.JobFailed) as raised:
        job.result()
    assert isinstance(raised.value.job, lathe.Job)
    server.on(JOB, status(200, job_document()))
    with pytest.raises(lathe.WaitTimeout):
        job.wait(timeout=0)


def test_several_jobs_are_waited_for_against_one_deadline(server: Script, client: lathe.Client) -> None:
    server.on(JOB, status(200, job_document(status="succeeded")))
    other = job_document(id="job_2")
    server.on(
        "GET /v1/jobs/job_2",
        status(200, other),
        status(200, job_document(id="job_2", status="cancelled")),
    )
    ended = client.jobs.wait(["job_1", "job_2"], poll_interval=0.01)
    assert [(job.id, job.status) for job in ended] == [("job_1", "succeeded"), ("job_2", "cancelled")]
    server.on("GET /v1/jobs/job_2", status(200, other))
    with pytest.raises(lathe.WaitTimeout) as raised:
        client.jobs.wait(("job_1", "job_2"), timeout=0.05, poll_interval=0.01)
    assert raised.value.job.id == "job_2"


def test_waiting_outlives_a_service_that_is_started_again(server: Script, client: lathe.Client) -> None:
    away = [cut, problem(503, "unavailable")] * 5
    server.on(JOB, *away, status(200, job_document(status="succeeded")))
    assert client.jobs.wait("job_1").status == "succeeded"
    server.on(JOB, problem(404, "not_found"))
    with pytest.raises(lathe.NotFound):
        client.jobs.wait("job_1")


def test_waiting_has_an_end_where_nobody_answers(server: Script, client: lathe.Client) -> None:
    server.on(JOB, cut)
    with pytest.raises(lathe.ConnectionFailed):
        client.jobs.wait("job_1", timeout=0.2)


def test_options_are_of_one_copy_and_the_connections_are_shared(server: Script, client: lathe.Client) -> None:
    server.on(JOB, problem(503, "unavailable"), status(200, job_document()))
    hasty = client.with_options(max_retries=0, timeout=0.5)
    with pytest.raises(lathe.ServerError):
        hasty.jobs.get("job_1")
    server.on(JOB, problem(503, "unavailable"), status(200, job_document()))
    job = client.jobs.get("job_1")
    assert len(server.requests) == 3
    server.on("POST /v1/jobs/job_1/cancel", _stall)
    with pytest.raises(lathe.ConnectionFailed, match="timed out"):
        client.with_options(timeout=0.05, max_retries=0).jobs.cancel(job.id)


def _stall(handler: Handler) -> None:
    time.sleep(0.3)
    handler.close_connection = True


def test_what_is_asked_before_and_after_jobs(server: Script, client: lathe.Client) -> None:
    machine = {"device": "cpu", "cores": 8}
    estimate = {"allowed_to_proceed": False, "machine": machine, "problems": [{"pointer": "/model", "reason": "large"}]}
    server.on("POST /v1/jobs/estimate", status(200, estimate))
    server.on("GET /v1/comparisons", status(200, {"jobs": [], "differences": [], "measurements": []}))
    server.on("GET /v1/templates", status(200, page({"name": "a", "title": "A", "description": "", "recipe": {}})))
    worker = {"id": "w", "host": "h", "device": None, "gpus": 0, "gpu_kind": None, "gpu_memory_bytes": None}
    times = {"started_at": "2026-01-01T00:00:00Z", "seen_at": "2026-01-01T00:00:00Z"}
    server.on("GET /v1/workers", status(200, page({**worker, **times, "status": "idle"})))
    assert client.jobs.estimate({"model": 1}).problems[0].pointer == "/model"
    assert json.loads(server.requests[0][3]) == {"model": 1}
    assert client.compare(["job_1", "job_2"]).jobs == ()
    assert [item.name for item in client.templates()] == ["a"]
    assert [item.status for item in client.workers()] == ["idle"]

    async def use() -> tuple[int, ...]:
        async with lathe.AsyncClient(server.url) as other:
            answers = (await other.jobs.estimate({}), await other.compare(["job_1"]))
            assert [answer.object for answer in answers] == ["estimate", "comparison"]
            return len(await other.templates()), len(await other.workers())

    assert asyncio.run(use()) == (1, 1)


def test_a_recipe_in_place_of_its_file_is_refused_before_anything_is_sent(server: Script, client: lathe.Client) -> None:
    with pytest.raises(TypeError, match="a recipe is a Recipe or a mapping"):
        client.jobs.estimate("recipe.yaml")  # type: ignore[arg-type]
    assert server.requests == []
