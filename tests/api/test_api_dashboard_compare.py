"""The page of a comparison: what it shows, whom it shows it to, and what hostile reports and recipes do to it."""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from compared_jobs import finished, report
from dashboard_reader import ATTACK, assert_harmless, assert_named, dashboard, signed_in
from fastapi.testclient import TestClient
from sqlalchemy import Engine, event, update

from api import lifecycle
from api.dashboard.scatter import HEIGHT, WIDTH, scatter
from api.lifecycle import Claim
from api.settings import Settings
from api.store.models import Job
from api.store.session import Sessions
from lathe.comparison_models import ComparedJob
from optcore.report.numbers import format_seconds

pytestmark = pytest.mark.integration

Make = Callable[..., str]


@pytest.fixture
def anonymous(settings: Settings) -> Iterator[TestClient]:
    with dashboard(settings) as client:
        yield client


@pytest.fixture
def reader(anonymous: TestClient, sessions: Sessions) -> TestClient:
    return signed_in(anonymous, sessions)


@pytest.fixture
def make(sessions: Sessions, settings: Settings, document: dict[str, Any]) -> Make:
    def made(project_id: str = "acme", asked: dict[str, Any] | None = None, **changes: Any) -> str:
        return finished(sessions, settings, {**document, **(asked or {})}, report(**changes).to_json(), project_id)

    return made


def test_columns_are_lettered_the_best_is_marked_and_each_can_go(reader: TestClient, make: Make) -> None:
    small, fine, other = make(), make(size=8e9, kl=0.01), make(size=9e9, kl=0.02)
    text = reader.get(f"/compare?job={small}&job={fine}").text
    assert_named(text)
    assert f'href="/compare?job={fine}" aria-label="Remove fast"' in text
    row = re.search(r"Weights on disk</th>.*?</tr>", text, re.DOTALL)
    assert row is not None
    assert re.findall(r'<td class="right num best">5 GB', row.group())
    assert "+60.0%" in row.group()
    assert f'<option value="{other}">' in text
    assert f'<option value="{small}">' not in text
    assert "They ask for the same." in text
    more = reader.get(f"/compare?job={small}&job={fine}&job={other}&job={small}").text
    assert "Compare 3 jobs" in more, "twice is once"
    assert "Beaten by B" in more


def test_quality_has_a_name_and_a_unit_and_is_ranked_within_one_source(reader: TestClient, make: Make) -> None:
    one, foreign = make(), make(size=1e9, kl=0.001, source_digest="b" * 64)
    text = reader.get(f"/compare?job={one}&job={foreign}").text
    assert "0.03 nats/token" in text
    assert "Quality lost: KL to the source, nats/token" in text
    table = text[text.index('id="measured-title"') :]
    assert "best" not in re.findall(r'<td class="([^"]*)"', table)
    assert 'class="change' not in table
    assert " best<" not in table


def test_days_in_which_nothing_ran_are_no_time_at_work(reader: TestClient, make: Make, sessions: Sessions) -> None:
    done, other = make(), make()
    long_ago = datetime.now(UTC) - timedelta(days=3)
    with sessions.begin() as session:
        session.execute(update(Job).where(Job.id == done).values(started_at=long_ago, run_seconds=83.0))
    for address in ("/", f"/jobs/{done}", f"/compare?job={done}&job={other}"):
        assert format_seconds(83) in (text := reader.get(address).text), address
        assert format_seconds(3 * 86400) not in text, address


def test_the_clock_of_a_job_counts_what_earlier_attempts_took(
    reader: TestClient, held: Claim, sessions: Sessions
) -> None:
    begun = datetime(2026, 1, 1, 12, tzinfo=UTC)
    with sessions.begin() as session:
        changed = {"started_at": begun - timedelta(days=3), "claimed_at": begun, "run_seconds": 60.0}
        session.execute(update(Job).where(Job.id == held.job_id).values(**changed))
    for address in ("/", f"/jobs/{held.job_id}"):
        assert 'data-since="2026-01-01T11:59:00.000Z"' in reader.get(address).text
    with sessions.begin() as session:
        lifecycle.request_pause(session, "acme", held.job_id)
        lifecycle.paused(session, held)
    for address in ("/", f"/jobs/{held.job_id}"):
        assert "data-since" not in reader.get(address).text, "nobody works on it"


def test_a_comparison_reads_its_jobs_once_and_counts_as_a_request(
    settings: Settings, sessions: Sessions, make: Make
) -> None:
    ids, read = (make(), make()), []
    with dashboard(settings.model_copy(update={"rate_limit": "3/minute"})) as anonymous:
        reader = signed_in(anonymous, sessions)

        @event.listens_for(Engine, "before_cursor_execute")
        def note(_connection: Any, _cursor: Any, _statement: str, parameters: Any, *_: Any) -> None:
            read.extend(id for id in ids if id in str(parameters) and "FROM jobs" in _statement)

        address = f"/compare?job={ids[0]}&job={ids[1]}"
        assert reader.get(address).status_code == 200
        event.remove(Engine, "before_cursor_execute", note)
        assert sorted(read) == sorted(ids)
        assert [reader.get(address).status_code for _ in range(3)] == [200, 200, 429]


def test_with_fewer_than_two_there_is_a_choice(reader: TestClient, make: Make, job_id: str) -> None:
    assert "Nothing to compare yet" in reader.get("/compare").text
    done = make()
    text = reader.get(f"/compare?job={job_id}").text
    assert re.findall(r'name="job" value="(job_\w+)"( checked)?', text) == [(job_id, " checked"), (done, "")]
    assert_named(text)


def test_other_tenants_jobs_are_not_there(reader: TestClient, make: Make) -> None:
    ours, theirs = make(), make(project_id="other")
    for query in (f"job={ours}&job={theirs}", f"job={theirs}", f"job={ours}&job=job_{'0' * 26}", f"job={ours}&job=%00"):
        answer = reader.get(f"/compare?{query}")
        assert answer.status_code == 404, query
        assert answer.headers["content-type"].startswith("text/html")
    assert theirs not in reader.get("/compare").text
    assert reader.get("/compare?" + "&".join(f"job={n}" for n in range(13))).status_code == 400


def test_hostile_words_stay_words(reader: TestClient, make: Make) -> None:
    row = {"name": "x", "title": ATTACK, "unit": ATTACK, "source": 1.0, "result": 2.0, "better": "lower"}
    hostile = {
        "name": ATTACK,
        "metadata": {ATTACK: ATTACK},
        "calibration": {"dataset": "python-stdlib", "samples": 7},
    }
    bad = make(asked=hostile, scheme=ATTACK, measurements=[row], environment={"hardware": ATTACK, ATTACK: ATTACK})
    other = make(measurements=[{**row, "result": 3.0}])
    for address in (f"/compare?job={bad}&job={other}", f"/compare?job={bad}", "/compare"):
        text = reader.get(address).text
        assert "{{ 7*7 }}" in text
        assert_harmless(text)


def test_long_values_are_cut(reader: TestClient, make: Make) -> None:
    long = make(asked={"metadata": {"a": "x" * 450}})
    text = reader.get(f"/compare?job={long}&job={make(asked={'metadata': {'a': 'y'}})}").text
    assert "x" * 400 + "…" in text
    assert "x" * 401 not in text


def _job(size: float | None, loss: float | None, speed: float | None = None) -> ComparedJob:
    facts: dict[str, Any] = {"id": "j", "name": None, "status": "succeeded", "model": "m", "summary": "", "seconds": 1}
    return ComparedJob(**facts, weight_bytes=size, quality=loss, tokens_per_second=speed, on_front=True)


@pytest.mark.parametrize(
    "jobs",
    [
        [_job(5e9, 0.01, 90), _job(8e9, 0.03, 45)],
        [_job(5e9, 0.01), _job(5e9, 0.01)],
        [_job(0, 0), _job(0, 0, 0)],
        [_job(1e-300, 1e300), _job(1e300, -1e300)],
        [_job(1, -0.02), _job(2, 0.5), _job(3, 0.1, 1e-9)],
        [_job(1, 8e307), _job(2, 0)],
        [_job(1, 0.1, -500), _job(2, 0.2, 3)],
    ],
)
def test_circles_lie_within_the_picture_whatever_the_numbers(jobs: list[ComparedJob]) -> None:
    found = scatter(jobs, "ABC"[: len(jobs)])
    assert found is not None
    for circle in found.circles:
        assert circle.radius <= circle.x <= WIDTH - circle.radius
        assert circle.y - circle.radius >= 0
        assert circle.y + circle.radius <= HEIGHT
    assert len(found.columns) < 10
    assert len(found.rows) < 10


def test_a_faster_result_is_a_larger_circle_and_better_is_down_and_left() -> None:
    found = scatter([_job(5e9, 0.01, 90), _job(8e9, 0.03, 45)], "AB")
    assert found is not None
    first, second = found.circles
    assert (first.letter, first.radius > second.radius) == ("A", True)
    assert first.x < second.x
    assert first.y > second.y
    assert "A: 5 GB, quality lost 0.01" in found.words


def test_numbers_worlds_apart_make_no_picture() -> None:
    assert scatter([_job(1, 1e308), _job(2, -1e308)], "AB") is None
    assert scatter([_job(1, 1.7e308), _job(2, 1)], "AB") is None
    assert scatter([_job(1.7e308, 1.7e308), _job(1.7e308, 1.7e308)], "AB") is None
    assert scatter([_job(1, 0), _job(2, 3e-323)], "AB") is None


def test_one_result_or_none_makes_no_picture() -> None:
    assert scatter([_job(5e9, 0.01), _job(None, 0.01), _job(1, None)], "ABC") is None
