"""Every pair of states, tried: what the table allows happens with one event, what it does not changes nothing."""

from itertools import product
from typing import get_args

import pytest
from sqlalchemy import func, update

from api.lifecycle.transitions import MOVES, PUBLISH_MOVES, move, move_publish
from api.store import events, jobs
from api.store.models import ACTIVE, Job
from api.store.session import Sessions
from lathe.models import TERMINAL, JobStatus, PublishStatus

pytestmark = pytest.mark.integration
STATES: tuple[JobStatus, ...] = get_args(JobStatus)
PUBLISH_STATES: tuple[PublishStatus, ...] = get_args(PublishStatus)


def _force(sessions: Sessions, job_id: str, status: str, publish_status: str = "not_requested") -> None:
    held = status in ACTIVE
    with sessions.begin() as session:
        session.execute(
            update(Job)
            .where(Job.id == job_id)
            .values(
                status=status,
                publish_status=publish_status,
                worker_id="w" if held else None,
                lease_until=func.now() if held else None,
                finished_at=func.now() if status in TERMINAL else None,
            )
        )


def test_the_tables_name_every_state() -> None:
    assert set(MOVES) == set(STATES)
    assert set(PUBLISH_MOVES) == set(PUBLISH_STATES)
    assert not MOVES["succeeded"]
    assert MOVES["failed"] == MOVES["cancelled"] == {"queued"}, "only by a retry"


def test_every_pair_of_job_states(sessions: Sessions, job_id: str) -> None:
    for source, target in product(STATES, STATES):
        _force(sessions, job_id, source)
        lease = {"worker_id": "w", "lease_until": func.now()} if target == "running" else {}
        with sessions.begin() as session:
            before = jobs.find(session, job_id).last_seq
            moved = move(session, job_id, target, data={}, **lease)
            after = jobs.find(session, job_id)
            lines = [line.type for line in events.after(session, job_id, before, 10)]
        assert (moved is not None) == (target in MOVES[source]), (source, target)
        assert (after.status, lines) == ((target, [f"job.{target}"]) if moved else (source, []))
        assert after.last_seq == before + len(lines)


def test_every_pair_of_publish_states(sessions: Sessions, job_id: str) -> None:
    for source, target in product(PUBLISH_STATES, PUBLISH_STATES):
        _force(sessions, job_id, "succeeded", source)
        with sessions.begin() as session:
            moved = move_publish(session, job_id, target, data={})
        assert (moved is not None) == (target in PUBLISH_MOVES[source]), (source, target)


@pytest.mark.parametrize("status", sorted(set(STATES) - {"succeeded"}))
def test_nothing_is_published_before_the_job_succeeded(sessions: Sessions, job_id: str, status: str) -> None:
    _force(sessions, job_id, status, "pending")
    with sessions.begin() as session:
        assert move_publish(session, job_id, "uploading", data={}) is None
