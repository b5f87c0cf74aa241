"""Following a job over server-sent events: resume, the job as the authority, the end."""

import asyncio
import json
from collections.abc import Iterator

import pytest
from scripted_server import Answer, Script, cut, cut_after, job_document, page, problem, scripted, status

import lathe
from lathe import _retry
from lathe._stream import Cursor, MAX_EVENT_bytes

JOB, EVENTS = "GET /v1/jobs/job_1", "GET /v1/jobs/job_1/events"
END = b"event: end\ndata: {}\n\n"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    monkeypatch.setattr(_retry, "START_seconds", 0.01)
    with scripted() as script:
        yield script


def _document(seq: int) -> dict[str, object]:
    return {"seq": seq, "at": "2026-01-01T00:00:00Z", "type": "notice", "data": {"message": f"n{seq}"}}


def _event(seq: int) -> bytes:
    return f"id: {seq}\ndata: {json.dumps(_document(seq))}\n\n".encode()


def _whole(body: bytes) -> Answer:
    return status(200, body, Content_Type="text/event-stream")


def _heard(script: Script, after: int = 0) -> list[int]:
    with lathe.Client(script.url) as client:
        return [event.seq for event in client.jobs.events("job_1", after=after, stream=True)]


def test_a_stream_is_followed_to_its_end_comments_left_out(server: Script) -> None:
    server.on(EVENTS, _whole(_event(1) + b": ping\n\n" + _event(2).replace(b"\n", b"\r\n") + END))
    assert _heard(server) == [1, 2]
    assert server.sent(EVENTS)[0]["accept"] == "text/event-stream"
    assert server.sent(JOB) == []


def test_a_broken_stream_goes_on_after_the_last_whole_event_and_the_job_was_asked_first(server: Script) -> None:
    server.on(EVENTS, cut_after(_event(1) + _event(2) + b'id: 3\ndata: {"se'), cut, _whole(_event(2) + _event(3) + END))
    server.on(JOB, status(200, job_document()))
    assert _heard(server) == [1, 2, 3]
    assert [headers.get("last-event-id") for headers in server.sent(EVENTS)] == [None, "2", "2"]
    order = [path for _, path, _, _ in server.requests]
    assert order == ["/v1/jobs/job_1/events", "/v1/jobs/job_1"] * 2 + ["/v1/jobs/job_1/events"]


def test_a_stream_that_broke_off_after_the_job_ended_is_not_opened_again(server: Script) -> None:
    server.on(EVENTS, cut_after(_event(1)), status(200, page(_document(2), _document(3))))
    server.on(JOB, status(200, job_document(status="failed")))
    assert _heard(server) == [1, 2, 3]
    assert [headers["accept"] for headers in server.sent(EVENTS)] == ["text/event-stream", "application/json"]


def test_a_service_that_is_away_for_a_while_is_waited_for(server: Script) -> None:
    server.on(EVENTS, problem(503, "unavailable"), _whole(_event(1) + END))
    server.on(JOB, cut, cut, cut, cut, status(200, job_document()))
    assert _heard(server) == [1]


def test_an_unknown_job_is_an_error_not_an_empty_stream(server: Script) -> None:
    server.on(EVENTS, problem(404, "not_found"))
    with pytest.raises(lathe.NotFound):
        _heard(server)
    assert len(server.requests) == 1


def test_reading_may_begin_in_the_middle(server: Script) -> None:
    server.on(EVENTS, _whole(_event(5) + END))
    assert _heard(server, after=4) == [5]
    assert server.sent(EVENTS)[0]["last-event-id"] == "4"


def test_the_async_client_follows_the_same_way(server: Script) -> None:
    server.on(EVENTS, cut_after(_event(1)), _whole(_event(2) + END))
    server.on(JOB, status(200, job_document()))

    async def use() -> list[int]:
        async with lathe.AsyncClient(server.url) as client:
            return [event.seq async for event in client.jobs.events("job_1", stream=True)]

    assert asyncio.run(use()) == [1, 2]
    assert server.sent(EVENTS)[1]["last-event-id"] == "1"


def _chunk(seq: int) -> bytes:
    document = {"seq": seq, "epoch": 1, "at": "2026-01-01T00:00:00Z", "text": f"line {seq}\n"}
    return f"id: {seq}\ndata: {json.dumps(document)}\n\n".encode()


def test_a_log_is_followed_over_lost_connections_by_both_clients(server: Script) -> None:
    logs = f"{JOB}/logs"
    server.on(JOB, status(200, job_document()))

    async def use() -> list[str]:
        async with lathe.AsyncClient(server.url) as client:
            return [chunk.text async for chunk in (await client.jobs.get("job_1")).logs(follow=True)]

    answers = (cut_after(_chunk(1) + b"id: 2\nda"), cut, _whole(_chunk(2) + _chunk(3) + END))
    server.on(logs, *answers)
    with lathe.Client(server.url) as client:
        heard = [chunk.text for chunk in client.jobs.get("job_1").logs(follow=True)]
    assert heard == ["line 1\n", "line 2\n", "line 3\n"]
    server.on(logs, *answers)
    assert asyncio.run(use()) == ["line 1\n", "line 2\n", "line 3\n"]
    assert [headers.get("last-event-id") for headers in server.sent(logs)] == [None, "1", "1"] * 2


def test_a_proxy_that_says_503_for_a_while_is_waited_for_and_one_that_says_no_is_not(server: Script) -> None:
    server.on(EVENTS, cut_after(_event(1)), _whole(_event(2) + END))
    server.on(JOB, *[problem(503, "unavailable")] * 4, status(200, job_document()))
    assert _heard(server) == [1, 2]
    server.on(EVENTS, cut_after(_event(1))).on(JOB, problem(401, "unauthorized"))
    with pytest.raises(lathe.Unauthorized):
        _heard(server)


def test_the_plain_history_reads_every_page_and_opens_no_stream(server: Script) -> None:
    server.on(EVENTS, status(200, page(_document(1), has_more=True, last_id="1")), status(200, page(_document(2))))
    with lathe.Client(server.url) as client:
        assert [event.data["message"] for event in client.jobs.events("job_1")] == ["n1", "n2"]


def test_what_is_no_event_is_refused_and_so_is_an_endless_one() -> None:
    cursor = Cursor(lathe.JobEvent)
    cursor.feed("data: not json")
    with pytest.raises(lathe.BadResponse, match="something else than an event"):
        cursor.feed("")
    cursor.feed("data: " + "x" * MAX_EVENT_bytes)
    with pytest.raises(lathe.BadResponse, match="larger than"):
        cursor.feed("data: x")


def test_patience_with_lost_connections_has_an_end() -> None:
    cursor, error = Cursor(lathe.JobEvent, patience=2), lathe.ConnectionFailed("away")
    assert cursor.dropped(error) > 0
    assert cursor.dropped(error) > 0
    with pytest.raises(lathe.ConnectionFailed):
        cursor.dropped(error)
