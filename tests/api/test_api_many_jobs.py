"""A list of many jobs stays quick: each filter has an index that PostgreSQL recognizes, and places are counted once."""

import re
from typing import Any

import pytest
from sqlalchemy import event, select, text

from api import lifecycle
from api.store import listing, queue, stages, workers
from api.store.models import Job
from api.store.session import Sessions
from optcore.recipe import Recipe

pytestmark = pytest.mark.integration
OWNER = "acme"


@pytest.mark.parametrize(
    ("index", "query"),
    [
        ("jobs_techniques_idx", listing.Query(technique="ptq")),
        ("jobs_model_idx", listing.Query(model="org/model")),
        ("jobs_name_idx", listing.Query(name_contains="Fas")),
        ("jobs_metadata_idx", listing.Query(metadata={"team": "nlp"})),
        ("jobs_status_idx", listing.Query(statuses=["failed"])),
    ],
)
def test_a_filter_is_answered_from_its_index(sessions: Sessions, index: str, query: listing.Query) -> None:
    with sessions.begin() as session:
        for other in session.execute(text("SELECT indexname FROM pg_indexes WHERE tablename = 'jobs'")).scalars().all():
            if other not in {index, "jobs_pkey"}:
                session.execute(text(f"DROP INDEX {other}"))
        session.execute(text("SET LOCAL enable_seqscan = off"))

        def explained(_1: Any, _2: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
            return f"EXPLAIN {statement}", parameters

        event.listen(session.connection(), "before_cursor_execute", explained, retval=True)
        asked = select(Job.project_id).where(Job.project_id == OWNER, *query.conditions())
        plan = session.execute(asked).scalars().all()
        session.rollback()
    assert any(index in line for line in plan), plan


def test_the_names_that_are_found_are_the_same_in_any_case(sessions: Sessions, recipe: Recipe) -> None:
    with sessions.begin() as session:
        for name in ("Nightly 100%", "nightly 1000", "ΟΔΟΣ a/b_c"):
            lifecycle.submit(session, OWNER, recipe.model_copy(update={"name": name}))

        def found(part: str) -> list[str]:
            rows, _ = listing.page(session, OWNER, limit=5, query=listing.Query(name_contains=part))
            return [row.recipe["name"] for row in rows]

        assert sorted(found("NIGHTLY")) == ["Nightly 100%", "nightly 1000"]
        assert found("00%") == ["Nightly 100%"]
        assert found("%1") == []
        assert found("A/B_C") == found("ΟΔΟΣ") == ["ΟΔΟΣ a/b_c"], "its last letter has another small form at an end"
        assert found("aXb") == found("b%c") == []


def test_places_in_line_go_by_priority_and_then_by_time(sessions: Sessions, recipe: Recipe) -> None:
    with sessions.begin() as session:
        ids = [
            lifecycle.submit(session, OWNER, recipe.model_copy(update={"priority": priority})).id
            for priority in (0, 5, 0, 5, -1)
        ]
        lifecycle.request_cancel(session, OWNER, ids[2])
        places = queue.places_in_line(session, ids)
        assert places == {ids[1]: 0, ids[3]: 1, ids[0]: 2, ids[4]: 3}


def test_a_long_line_is_walked_at_its_head_alone(sessions: Sessions, recipe: Recipe) -> None:
    """By what PostgreSQL says that it read: a time would be this machine's."""
    asked: list[tuple[str, Any]] = []
    with sessions.begin() as session:
        job_id = lifecycle.submit(session, OWNER, recipe.model_copy(update={"priority": -1})).id
        last = session.get_one(Job, job_id)
        names = ", ".join(column.name for column in Job.__table__.columns if column.name not in {"id", "priority"})
        copies = f"SELECT 'job_' || lpad(n::text, 26, '0'), 0, {names} FROM jobs, generate_series(1, 3000) n"
        session.execute(text(f"INSERT INTO jobs (id, priority, {names}) {copies}"))
        session.execute(text("ANALYZE jobs"))
        connection = session.connection()
        event.listen(connection, "before_cursor_execute", lambda *each: asked.append((each[2], each[3])))
        assert queue.places_in_line(session, [job_id, "job_" + "0" * 26]) == {job_id: 1000}
        ((statement, parameters),) = asked
        plan = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, TIMING OFF) {statement}", parameters).scalars().all()
        assert max(int(rows) for rows in re.findall(r"actual rows=(\d+)", "\n".join(plan))) <= 1000, plan
        assert any("jobs_line_idx" in line for line in plan), plan
        workers.beat(session, "w", workers.Capacity("h1", "cpu"))
        said = lifecycle.waiting_reasons(session, [last])[job_id]
        assert (said.ahead, said.message) == (1000, "1000 jobs or more come first")
        session.rollback()


def test_stages_are_told_apart_by_job(sessions: Sessions, recipe: Recipe) -> None:
    with sessions.begin() as session:
        first, second, third = (lifecycle.submit(session, OWNER, recipe).id for _ in range(3))
        stages.plan(session, first, ["0-fetch", "1-ptq"])
        stages.plan(session, second, ["0-load"])
        found = stages.by_job(session, [first, second, third])
        assert [[stage.name for stage in found[job_id]] for job_id in (first, second, third)] == [
            ["0-fetch", "1-ptq"],
            ["0-load"],
            [],
        ]
