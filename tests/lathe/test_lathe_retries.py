"""Sending again: what for, how often, how long after; against a real server that fails on demand."""

import asyncio
import time
from collections.abc import Iterator

import pytest
from scripted_server import Script, cut, job_document, page, problem, scripted, status

import lathe
from lathe import _retry
from lathe._retry import RetryPolicy, backoff

RECIPE = {"model": {"path": "m"}, "chain": [{"technique": "ptq", "scheme": "fp8"}]}
CREATE, GET = "POST /v1/jobs", "GET /v1/jobs/job_1"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    monkeypatch.setattr(_retry, "START_seconds", 0.01)
    with scripted() as script:
        yield script


@pytest.mark.parametrize(
    "trouble",
    [
        cut,
        problem(408, "timeout"),
        problem(409, "idempotency_in_progress"),
        problem(429, "rate"),
        problem(500, "x"),
        status(503),
    ],
)
def test_trouble_that_passes_is_not_seen_and_the_key_stays_the_same(server: Script, trouble: object) -> None:
    server.on(CREATE, trouble, trouble, status(201, job_document()))
    with lathe.Client(server.url, "lk_x") as client:
        assert client.jobs.create(RECIPE).id == "job_1"
    sent = server.sent(CREATE)
    assert len(sent) == 3
    assert len({headers["idempotency-key"] for headers in sent}) == 1
    assert {headers["authorization"] for headers in sent} == {"Bearer lk_x"}


@pytest.mark.parametrize(
    ("code", "name"), [(400, "bad_request"), (401, "x"), (404, "x"), (409, "conflict"), (422, "x")]
)
def test_a_plain_no_is_asked_once(server: Script, code: int, name: str) -> None:
    server.on(CREATE, problem(code, name))
    with lathe.Client(server.url) as client, pytest.raises(lathe.APIError, match=f"detail of {name}"):
        client.jobs.create(RECIPE)
    assert len(server.sent(CREATE)) == 1


def test_what_an_attempt_deleted_before_its_answer_was_lost_is_deleted(server: Script) -> None:
    delete = "DELETE /v1/jobs/job_1"
    server.on(delete, cut, problem(404, "not_found"))
    with lathe.Client(server.url) as client:
        client.jobs.delete("job_1")
        assert len(server.sent(delete)) == 2
        with pytest.raises(lathe.NotFound):
            client.jobs.delete("job_1")

    async def use() -> None:
        server.on(delete, cut, problem(404, "not_found"))
        async with lathe.AsyncClient(server.url) as client:
            await client.jobs.delete("job_1")
            with pytest.raises(lathe.NotFound):
                await client.jobs.delete("job_1")

    asyncio.run(use())


def test_the_last_trouble_is_raised_after_two_more_attempts(server: Script) -> None:
    server.on(CREATE, cut, cut, problem(503, "unavailable"))
    with lathe.Client(server.url) as client, pytest.raises(lathe.ServerError) as raised:
        client.jobs.create(RECIPE)
    assert raised.value.status == 503
    assert len(server.sent(CREATE)) == 3


def test_nobody_there_is_a_typed_error_that_says_what_to_do() -> None:
    with lathe.Client("http://127.0.0.1:9", max_retries=0) as client, pytest.raises(lathe.ConnectionFailed) as raised:
        client.health()
    assert "http://127.0.0.1:9" in str(raised.value)
    assert "LATHE_URL" in raised.value.remedy


def test_retry_after_is_waited_for_but_not_for_ever(server: Script) -> None:
    server.on(GET, problem(429, "rate", Retry_After="1"), status(200, job_document()))
    with lathe.Client(server.url) as client:
        began = time.monotonic()
        client.jobs.get("job_1")
        assert 1.0 <= time.monotonic() - began < 5
        server.on(GET, problem(429, "rate", Retry_After="3600"))
        with pytest.raises(lathe.TooManyRequests) as raised:
            client.jobs.get("job_1")
    assert raised.value.retry_after_seconds == 3600
    assert len(server.sent(GET)) == 3


def test_the_async_client_retries_pages_and_waits_the_same_way(server: Script) -> None:
    server.on(CREATE, cut, problem(500, "x"), status(201, job_document()))
    server.on(
        "GET /v1/jobs",
        status(200, page(job_document(id="job_2"), has_more=True, last_id="job_2")),
        status(200, page(job_document())),
    )
    server.on(GET, status(200, job_document()), status(200, job_document(status="cancelled")))

    async def use() -> list[str]:
        async with lathe.AsyncClient(server.url) as client:
            created = await client.jobs.create(RECIPE)
            listed = [job.id async for job in client.jobs.list()]
            ended = await client.jobs.wait(created.id, poll_interval=0.01)
            with pytest.raises(lathe.JobCancelled):
                await client.jobs.result(created.id)
            return [created.id, *listed, ended.status]

    assert asyncio.run(use()) == ["job_1", "job_2", "job_1", "cancelled"]


def test_waiting_ends_with_the_job_or_with_the_time(server: Script) -> None:
    failure = {
        "kind": "user_error",
        "code": "data_unusable",
        "message": "no text",
        "field": "/calibration",
        "remedy": "r",
    }
    with lathe.Client(server.url) as client:
        server.on(GET, status(200, job_document()))
        with pytest.raises(TimeoutError, match="still running") as late:
            client.jobs.wait("job_1", timeout=0.05, poll_interval=0.01)
        assert isinstance(late.value, lathe.WaitTimeout)
        assert late.value.job.id == "job_1"
        server.on(GET, status(200, job_document()), status(200, job_document(status="failed", failure=failure)))
        assert client.jobs.wait("job_1", poll_interval=0.01).status == "failed"
        with pytest.raises(lathe.JobFailed, match="no text") as failed:
            client.jobs.result("job_1")
    assert (failed.value.failure.code, failed.value.field, failed.value.job.status) == (
        "data_unusable",
        "/calibration",
        "failed",
    )


def test_waiting_tells_each_event_once(server: Script) -> None:
    events = [{"seq": n, "at": "2026-01-01T00:00:00Z", "type": "notice", "data": {}} for n in (1, 2, 3)]
    server.on(GET, status(200, job_document()), status(200, job_document(status="succeeded")))
    server.on("GET /v1/jobs/job_1/events", status(200, page(*events[:2])), status(200, page(*events)))
    told: list[int] = []
    with lathe.Client(server.url) as client:
        client.jobs.wait("job_1", poll_interval=0.01, on_event=lambda event: told.append(event.seq))
    assert told == [1, 2, 3]


def test_pauses_double_up_to_a_cap_and_vary() -> None:
    pauses = [backoff(attempt) for attempt in range(8)]
    assert 0.375 <= pauses[0] <= 0.5
    assert all(6.0 <= pause <= 8.0 for pause in pauses[4:])
    assert len({backoff(3) for _ in range(20)}) > 1
    assert RetryPolicy(0).delay(lathe.ConnectionFailed("x"), 0) is None
