"""What holds of a job after whatever was done to it: all that is stored of it, beside what is expected."""

from itertools import pairwise
from typing import Any

import pytest
from machine_model import HELD, Expected, SLACK_seconds, STAGE_seconds
from sqlalchemy import text
from sqlalchemy.orm import Session

from api.lifecycle.transitions import MOVES, PUBLISH_MOVES

Row = dict[str, Any]
Rows = list[Row]
Moves = set[tuple[str, str]]
JOB_MOVES: Moves = {(source, target) for source, targets in MOVES.items() for target in targets}
PUSH_MOVES: Moves = {(source, target) for source, targets in PUBLISH_MOVES.items() for target in targets}

PARTS = {"events": "seq", "attempts": "epoch", "stages": "name", "artifacts": "path", "log_chunks": "seq"}
"""Tables with rows of a job, and their order."""
STORED = text(
    "SELECT (SELECT to_jsonb(jobs) FROM jobs WHERE id = :job_id),"
    " (SELECT coalesce(jsonb_agg(prefix), '[]') FROM removals WHERE starts_with(prefix, :job_id)), "
    + ", ".join(
        f"(SELECT coalesce(jsonb_agg(to_jsonb({table}) ORDER BY {order}), '[]') FROM {table} WHERE job_id = :job_id)"
        for table, order in PARTS.items()
    )
)
"""In one question, because it is asked after each step."""


def check(session: Session, job_id: str, expected: Expected) -> tuple[Moves, Moves]:
    """Hold all that is stored against what is expected; the moves of the job and of its publishing."""
    job, removals, events, attempts, stages, artifacts, _ = session.execute(STORED, {"job_id": job_id}).one()
    _the_job_is_as_expected(job, expected)
    _one_attempt_runs_exactly_while_the_job_is_held(attempts, expected)
    _the_one_result_stays_and_what_else_was_written_goes(job, attempts, artifacts, removals, expected)
    _a_finished_stage_stays_and_none_runs_while_nobody_works(stages, expected)
    return _the_history_has_no_gaps_and_obeys_the_tables(job, events)


def nothing_is_left(session: Session, job_id: str) -> None:
    """All that was stored of the job went with it, and its files are going."""
    job, removals, *parts = session.execute(STORED, {"job_id": job_id}).one()
    assert (job, parts) == (None, [[]] * len(PARTS))
    assert job_id in removals


def _the_job_is_as_expected(job: Row, expected: Expected) -> None:
    assert (job["status"], job["publish_status"]) == (expected.status, expected.publish)
    assert (job["run_number"], job["losses"]) == (expected.run_number, expected.losses)
    assert (job["epoch"], job["attempt"]) == (expected.claims, expected.claims)
    assert (job["publish_epoch"], job["publish_attempt"]) == (expected.pushes, expected.tries)
    assert (job["failure"] is not None) == (expected.status == "failed")
    assert expected.status in HELD or job["run_seconds"] == pytest.approx(expected.ran_seconds, abs=SLACK_seconds)


def _the_history_has_no_gaps_and_obeys_the_tables(job: Row, events: Rows) -> tuple[Moves, Moves]:
    assert [event["seq"] for event in events] == list(range(1, job["last_seq"] + 1))
    types = [event["type"] for event in events]
    statuses = [type.removeprefix("job.") for type in types if type.startswith("job.")]
    publishes = [type.removeprefix("publish.") for type in types if type.startswith("publish.")]
    publishes.insert(0, "not_requested")
    assert (statuses[0], statuses[-1], publishes[-1]) == ("queued", job["status"], job["publish_status"])
    assert [event["data"].get("reason") for event in events].count("retried") == job["run_number"] - 1
    moves, push_moves = set(pairwise(statuses)), set(pairwise(publishes))
    assert moves <= JOB_MOVES
    assert push_moves <= PUSH_MOVES
    return moves, push_moves


def _one_attempt_runs_exactly_while_the_job_is_held(attempts: Rows, expected: Expected) -> None:
    assert [attempt["epoch"] for attempt in attempts] == list(range(1, expected.claims + 1))
    running = [attempt["epoch"] for attempt in attempts if attempt["state"] == "running"]
    assert running == ([expected.holder] if expected.status in HELD else [])


def _the_one_result_stays_and_what_else_was_written_goes(
    job: Row, attempts: Rows, artifacts: Rows, removals: list[str], expected: Expected
) -> None:
    results = [expected.result] if expected.result else []
    assert (expected.status == "succeeded") == bool(results)
    assert [job["artifact_digest"]] == ([digest for _, digest in results] or [None])
    assert [file["bytes"] for file in artifacts] == [epoch for epoch, _ in results]
    assert [each["epoch"] for each in attempts if each["state"] == "succeeded"] == [epoch for epoch, _ in results]
    in_vain = [each["epoch"] for each in attempts if each["state"] not in {"running", "succeeded"}]
    assert set(removals) == {f"{job['id']}/{epoch}" for epoch in in_vain}


def _a_finished_stage_stays_and_none_runs_while_nobody_works(stages: Rows, expected: Expected) -> None:
    finished = [stage for stage in stages if stage["name"] in expected.finished_stages]
    assert {stage["name"] for stage in finished} == expected.finished_stages
    assert all((stage["status"], stage["seconds"]) == ("succeeded", STAGE_seconds) for stage in finished)
    others = {stage["status"] for stage in stages if stage not in finished}
    once_over = {"succeeded": {"succeeded"}, "failed": {"failed", "cancelled"}, "cancelled": {"cancelled"}}
    before = {"pending", "running"} if expected.status in HELD else {"pending"}
    assert others <= once_over.get(expected.status, before)
