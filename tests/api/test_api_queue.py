"""Who is next: priority, fair share, limits, workers that fit, hosts that are trusted; and why the others wait."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select, text, update

from api import lifecycle
from api.lifecycle import Claim
from api.store import hosts, projects, workers
from api.store.models import Job
from api.store.session import Sessions
from api.store.workers import Capacity
from optcore.errors import Failure
from optcore.recipe import Recipe

pytestmark = pytest.mark.integration
CPU = Capacity("h1", "cpu")
H200 = Capacity("h2", "cuda", 8, "NVIDIA H200", 141 * 1024**3)
L4 = Capacity("h3", "cuda", 1, "NVIDIA L4", 24 * 1024**3)
DIED = Failure(kind="infrastructure", code="engine_crashed", message="died", retryable=True)

Submit = Callable[..., str]


@pytest.fixture
def submit(sessions: Sessions, recipe: Recipe) -> Submit:
    def make(project_id: str = "acme", **more: Any) -> str:
        wanted = Recipe.model_validate(recipe.model_dump() | more)
        with sessions.begin() as session:
            return lifecycle.submit(session, project_id, wanted).id

    return make


def _take(sessions: Sessions, worker: Capacity = CPU) -> Claim | None:
    with sessions.begin() as session:
        return lifecycle.claim_next(session, worker, "w")


def _taken(sessions: Sessions, worker: Capacity = CPU) -> str | None:
    claim = _take(sessions, worker)
    return claim and claim.job_id


def test_the_more_urgent_then_the_one_that_waited_longer(sessions: Sessions, submit: Submit) -> None:
    first, second, urgent, lazy = submit(), submit(), submit(priority=5), submit(priority=-1)
    assert [_taken(sessions) for _ in range(5)] == [urgent, first, second, lazy, None]


def test_a_project_with_less_running_comes_first(sessions: Sessions, submit: Submit) -> None:
    ours = [submit() for _ in range(3)]
    theirs = [submit("other") for _ in range(2)]
    assert [_taken(sessions) for _ in range(5)] == [ours[0], theirs[0], ours[1], theirs[1], ours[2]]


def test_a_project_never_runs_more_than_its_limit_however_many_ask_at_once(sessions: Sessions, submit: Submit) -> None:
    with sessions.begin() as session:
        assert projects.limit(session, "acme", max_running=2)
    for _ in range(12):
        submit()
    with ThreadPoolExecutor(8) as pool:
        claims = [claim for claim in pool.map(lambda _: _take(sessions), range(8)) if claim]
    assert len(claims) == 2
    other = submit("other")
    assert _taken(sessions) == other, "a full project holds nobody else up"
    with sessions.begin() as session:
        before = session.scalar(text("SELECT max(id) FROM outbox"))
        lifecycle.release(session, claims[0])
        called = session.execute(text("SELECT count(*) FROM outbox WHERE id > :i AND topic = 'run_job'"), {"i": before})
        assert called.scalar_one() == 2, "the job itself, and one that was kept waiting"
    assert _take(sessions) is not None


def test_a_job_waits_for_a_worker_that_fits(client: TestClient, sessions: Sessions, submit: Submit) -> None:
    big = submit(hardware={"gpu_memory_gib": 80})
    named = submit(hardware={"gpu_kind": "l4"})
    light = submit(hardware={"device": "cpu"})
    assert client.get(f"/v1/jobs/{big}").json()["waiting"]["reason"] == "no_worker"
    assert [_taken(sessions, CPU), _taken(sessions, CPU)] == [light, None]
    assert [_taken(sessions, L4), _taken(sessions, L4)] == [named, None]
    with sessions.begin() as session:
        workers.beat(session, "w-h200", H200)
    waiting = client.get(f"/v1/jobs/{big}").json()["waiting"]
    assert (waiting["reason"], waiting["ahead"]) == ("in_line", 0)
    assert _taken(sessions, H200) == big


def test_a_queued_job_says_why_it_waits(client: TestClient, sessions: Sessions, submit: Submit) -> None:
    first, second = submit(), submit()
    with sessions.begin() as session:
        workers.beat(session, "w", CPU)
    listed = client.get("/v1/jobs", params={"order": "asc"}).json()["data"]
    assert [(job["id"], job["waiting"]["ahead"]) for job in listed] == [(first, 0), (second, 1)]
    assert _taken(sessions) == first
    with sessions.begin() as session:
        projects.limit(session, "acme", max_running=1)
    jobs = {job["id"]: job["waiting"] for job in client.get("/v1/jobs").json()["data"]}
    assert (jobs[first], jobs[second]["reason"]) == (None, "project_limit")


def test_a_job_rests_after_a_loss(client: TestClient, sessions: Sessions, submit: Submit) -> None:
    job_id = submit()
    claim = _take(sessions)
    assert claim is not None
    with sessions.begin() as session:
        lifecycle.fail(session, claim, DIED)
    assert _take(sessions) is None
    assert client.get(f"/v1/jobs/{job_id}").json()["waiting"]["reason"] == "after_loss"
    with sessions.begin() as session:
        session.execute(update(Job).values(not_before=func.now()))
    assert _taken(sessions) == job_id


def test_a_host_that_loses_job_after_job_gets_no_more(sessions: Sessions, submit: Submit) -> None:
    def lose(worker: Capacity) -> None:
        with sessions.begin() as session:
            session.execute(update(Job).values(not_before=func.now()))
        claim = _take(sessions, worker)
        assert claim is not None
        with sessions.begin() as session:
            lifecycle.fail(session, claim, DIED)

    poison = submit(priority=9)
    for _ in range(3):
        lose(CPU)
    with sessions() as session:
        assert session.get_one(Job, poison).status == "failed"
        assert not hosts.in_quarantine(session, "h1"), "one job alone may be to blame itself"
    for _ in range(4):
        submit()
    for _ in range(2):
        lose(CPU)
    assert _take(sessions, CPU) is None, "three different jobs in a row"
    assert _take(sessions, L4) is not None, "another host goes on"
    with sessions.begin() as session:
        session.execute(update(Job).values(not_before=func.now()))
        assert hosts.trust(session, "h1")
    assert _take(sessions, CPU) is not None


def test_samples_of_memory_are_a_curve_and_no_history(client: TestClient, sessions: Sessions, held: Claim) -> None:
    from optcore.events import MEMORY, Metric

    samples = [Metric(stage="1-qat", name=MEMORY, value=1e9 + i, step=2 * i) for i in range(3)]
    with sessions.begin() as session:
        lifecycle.record(session, held, samples)
        before = session.scalar(text("SELECT last_seq FROM jobs"))
        lifecycle.record(session, held, [*samples, Metric(stage="1-qat", name="loss", value=2, step=1)])
        assert session.scalar(text("SELECT last_seq FROM jobs")) == before + 1
    (curve,) = (each for each in _data(client, held, "metrics", points=10) if each["name"] == MEMORY)
    assert (curve["last_step"], curve["mean"]) == ([0, 2, 4], [1e9, 1e9 + 1, 1e9 + 2])
    with sessions() as session:
        told = session.scalars(text("SELECT data ->> 'name' FROM events WHERE type = 'metric'")).all()
    assert told == ["loss"]


def test_metrics_and_logs_are_kept_and_thinned(client: TestClient, sessions: Sessions, held: Claim) -> None:
    from optcore.events import Metric

    points = [Metric(stage="1-qat", name="loss", value=1000.0 - i, step=i) for i in range(1000)]
    with sessions.begin() as session:
        lifecycle.record(session, held, [*points, Metric(stage="1-qat", name="kl", value=0.5)])
        lifecycle.record(session, held, points[-2:])
        lifecycle.record_log(session, held, "first\n")
        lifecycle.record_log(session, held, "second\n")
    curves = {curve["name"]: curve for curve in _data(client, held, "metrics", points=10)}
    assert curves["kl"]["mean"] == [0.5]
    loss = curves["loss"]
    assert [len(loss[column]) for column in ("mean", "low", "high", "last", "first_step")] == [10] * 5
    assert (loss["first_step"][1], loss["last_step"][1]) == (100, 199)
    assert (loss["low"][1], loss["high"][1], loss["mean"][1], loss["last"][1]) == (801, 900, 850.5, 801)
    assert [chunk["text"] for chunk in _data(client, held, "logs")] == ["first\n", "second\n"]
    assert [chunk["seq"] for chunk in _data(client, held, "logs", after=1)] == [2]
    with sessions() as session:
        told = session.scalar(text("SELECT count(*) FROM events WHERE type = 'metric'"))
        assert told == 3, "the newest of each name in each batch"
        assert session.scalar(select(func.count()).select_from(text("metrics"))) == 1001


def _data(client: TestClient, held: Claim, what: str, **params: Any) -> list[dict[str, Any]]:
    return list(client.get(f"/v1/jobs/{held.job_id}/{what}", params=params).json()["data"])
