"""A submission: every row that a new job begins with, in one statement, and so in one round trip.

It is written as SQL because its parts see each other: nothing is inserted unless the idempotency key was free.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from api.store import jobs, outbox
from api.store.retention import IDEMPOTENCY_seconds
from api.store.statements import Statement, Statements

ROUTE = "POST /v1/jobs"
"""Under which submissions keep their idempotency keys."""


class Inserted(NamedTuple):
    """What is known once the job is there."""

    created_at: datetime
    has_quota: bool
    """Whether a limit of the project has to be checked before the commit."""
    has_receiver: bool
    """Whether a webhook endpoint may want to hear of it."""
    lacks_credential: bool
    """Whether the recipe publishes with a Hub token that the project did not store."""


_INSERT = """
WITH project AS (
    SELECT
        num_nonnulls(max_unfinished, max_storage_bytes, max_gpu_seconds) > 0 AS has_quota,
        EXISTS (
            SELECT FROM webhook_endpoints WHERE project_id = %(project_id)s AND 'job.queued' = ANY (events)
        ) AS has_receiver,
        %(credential)s::text IS NOT NULL AND NOT EXISTS (
            SELECT FROM credentials WHERE project_id = %(project_id)s AND name = %(credential)s
        ) AS lacks_credential
    FROM projects WHERE id = %(project_id)s
), wanted AS (
    SELECT * FROM project WHERE %(in_transaction)s OR NOT (has_quota OR has_receiver OR lacks_credential)
), reserved AS (
    INSERT INTO idempotency_keys AS known (project_id, route, key, body_sha256, job_id)
    SELECT %(project_id)s, %(route)s, %(key)s, %(digest)s, %(id)s FROM wanted WHERE %(key)s::text IS NOT NULL
    ON CONFLICT (project_id, route, key) DO UPDATE
        SET body_sha256 = excluded.body_sha256, job_id = excluded.job_id, created_at = now()
        WHERE known.created_at < now() - make_interval(secs => %(kept_seconds)s)
    RETURNING 1
), job AS (
    INSERT INTO jobs (
        id, project_id, recipe, digest, request_id, traceparent, last_seq, wake_at, publish_to, priority,
        device, gpu_kind, gpu_memory_bytes, max_run_seconds, max_queue_seconds
    )
    SELECT
        %(id)s, %(project_id)s, %(recipe)s::jsonb, %(digest)s, %(request_id)s, %(traceparent)s, 1,
        now() + make_interval(secs => %(patience_seconds)s),
        %(publish_to)s::jsonb, %(priority)s, %(device)s, %(gpu_kind)s, %(gpu_memory_bytes)s::bigint,
        %(max_run_seconds)s::integer, %(max_queue_seconds)s::integer
    FROM wanted WHERE %(key)s::text IS NULL OR EXISTS (SELECT FROM reserved)
    RETURNING id, created_at
), event AS (
    INSERT INTO events (job_id, seq, type, data) SELECT id, 1, 'job.queued', '{"reason": "submitted"}' FROM job
), message AS (
    INSERT INTO outbox (topic, payload) SELECT 'run_job', jsonb_build_object('job_id', id) FROM job
), entry AS (
    INSERT INTO audit_log (project_id, actor, action, target, request_id, address)
    SELECT %(project_id)s, %(actor)s, 'job.create', id, %(request_id)s, %(address)s FROM job
    WHERE %(actor)s::text IS NOT NULL
)
SELECT created_at, has_quota, has_receiver, lacks_credential, pg_notify(%(outbox)s, '') FROM job, project
"""
_ALONE = Statement.of(_INSERT)
_FIXED = {
    "route": ROUTE,
    "kept_seconds": IDEMPOTENCY_seconds,
    "patience_seconds": jobs.REANNOUNCE_seconds,
    "outbox": outbox.CHANNEL,
}


def insert(session: Session, values: Mapping[str, Any]) -> Inserted | None:
    """Insert a job with its first event, its announcement and, where an `actor` is named, a line in the audit log.

    `recipe` and `publish_to` are JSON. None when `key` is taken: a second request with it waits here for the first
    one's commit.
    """
    row = session.connection().exec_driver_sql(_INSERT, {**values, **_FIXED, "in_transaction": True}).one_or_none()
    return None if row is None else Inserted(*row[:4])


async def insert_alone(statements: Statements, values: Mapping[str, Any]) -> Inserted | None:
    """The same without a transaction around it, for two round trips less. None also where something else must follow.

    That is where the project has limits or a receiver, or lacks the credential: `Inserted` says no to all three.
    """
    row = await statements.row(_ALONE, {**values, **_FIXED, "in_transaction": False})
    return None if row is None else Inserted(*row[:4])
