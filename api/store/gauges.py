"""How the service is doing at this moment: a few counts, each from an index that holds only what is unfinished."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from api.store import hosts
from api.store.models import Artifact
from api.store.workers import ALIVE_seconds

_JOBS = text("""
SELECT status, priority, coalesce(device, 'any'), count(*), extract(epoch FROM now() - min(queued_at))
FROM jobs WHERE status NOT IN ('succeeded', 'failed', 'cancelled') GROUP BY 1, 2, 3
""")
_LEASES = text("""
SELECT count(*) FILTER (WHERE lease_until < now() + interval '20 seconds'), count(*) FILTER (WHERE lease_until < now())
FROM jobs WHERE lease_until IS NOT NULL
""")
_OUTBOX = text("""
SELECT count(*), extract(epoch FROM now() - min(available_at))
FROM outbox WHERE published_at IS NULL AND available_at <= now()
""")
_MESSAGES = text("""
SELECT count(*), extract(epoch FROM now() - min(asked_at)) FROM webhook_messages WHERE status = 'pending'
""")
_ENDPOINTS = text("""
SELECT CASE WHEN disabled_at IS NULL THEN 'enabled' ELSE coalesce(disabled_reason, 'owner') END, count(*)
FROM webhook_endpoints GROUP BY 1
""")
_PUSHES = text("""
SELECT publish_status, count(*) FROM jobs WHERE publish_status = 'pending' OR publish_status = 'uploading' GROUP BY 1
UNION ALL SELECT 'failed', count(*) FROM jobs WHERE publish_status = 'failed'
""")
_WORKERS = text("""
SELECT coalesce(device, 'none'),
    CASE WHEN draining THEN 'draining' WHEN unfit IS NOT NULL THEN 'unfit' ELSE 'ready' END,
    count(*), sum(gpus)
FROM workers WHERE seen_at > now() - make_interval(secs => :alive) GROUP BY 1, 2
""")
_LEADERS = text("SELECT count(*) FROM leases WHERE name = 'reconciler' AND until > now()")


@dataclass(frozen=True)
class Gauges:
    """Rows of counts; ages are in seconds, None where there is nothing."""

    jobs: Sequence[Any]
    """Status, priority, device, count, age of the one that joined the queue first."""
    leases: Any
    """Those that end within 20 s, and those that are over."""
    outbox: Any
    """Messages that are due, and the age of the oldest."""
    messages: Any
    """Webhook messages that are not delivered, and the age of the oldest."""
    endpoints: Sequence[Any]
    """State, count."""
    pushes: Sequence[Any]
    """State, count."""
    workers: Sequence[Any]
    """Device, state, count, GPUs: of those heard of in the last minute."""
    quarantined: Sequence[str]
    """Names of hosts."""
    leaders: int
    """1 while some reconciler is at work."""


def read(session: Session) -> Gauges:
    """All of them, in one transaction."""
    return Gauges(
        jobs=session.execute(_JOBS).all(),
        leases=session.execute(_LEASES).one(),
        outbox=session.execute(_OUTBOX).one(),
        messages=session.execute(_MESSAGES).one(),
        endpoints=session.execute(_ENDPOINTS).all(),
        pushes=session.execute(_PUSHES).all(),
        workers=session.execute(_WORKERS, {"alive": ALIVE_seconds}).all(),
        quarantined=[host.name for host in hosts.quarantined(session)],
        leaders=session.execute(_LEADERS).scalar_one(),
    )


def artifact_bytes(session: Session) -> int:
    """Of all finished artifacts: reads every row of theirs, so ask seldom."""
    return int(session.scalar(select(func.coalesce(func.sum(Artifact.bytes), 0))) or 0)
