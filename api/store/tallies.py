"""Counters that last: what ended since the last look is added up, by one writer, from the rows themselves.

So every API process tells the same numbers, a restart sets none back, and rows that are deleted stay counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.store.models import Tally

LAG_seconds = 30
"""What is younger waits: its transaction may not be over, and nobody would come back for it. The server ends one that
rests for 20 s."""
STAGE_BOUNDS_seconds = (1, 5, 15, 60, 300, 900, 3600, 3 * 3600, 12 * 3600)
"""Upper bounds of the histogram of stages; the last bucket has none."""

_BUCKET = f"width_bucket(seconds, ARRAY{list(STAGE_BOUNDS_seconds)}::double precision[])::text"
_KINDS = {
    "submission": ("jobs", "created_at", "coalesce(device, 'any')", "0"),
    "job": ("jobs", "finished_at", "status", "run_seconds"),
    "stage": (
        "stages",
        "finished_at",
        rf"coalesce(substring(name FROM '^\d+-([a-z_]{{1,40}})'), 'other'), status, coalesce({_BUCKET}, '')",
        "seconds",
    ),
    "attempt": (
        "attempts",
        "finished_at",
        "state, coalesce(failure ->> 'kind', '')",
        "extract(epoch FROM finished_at - started_at)",
    ),
    "delivery": (
        "webhook_deliveries",
        "at",
        "CASE WHEN status_code IS NULL THEN 'unreachable' "
        "WHEN status_code BETWEEN 200 AND 299 THEN 'delivered' ELSE 'refused' END",
        "seconds",
    ),
}
"""Table, time, labels and seconds of what is counted. A stage's last label is its bucket."""

_FOLD = """
INSERT INTO tallies (kind, labels, count, seconds, until)
SELECT %(kind)s, ARRAY[{labels}], count(*), coalesce(sum({seconds}), 0), span.until
FROM {table}, (
    SELECT coalesce(max(tallies.until), '-infinity') AS since, now() - make_interval(secs => %(lag)s) AS until
    FROM tallies WHERE kind = %(kind)s
) AS span
WHERE {at} > span.since AND {at} <= span.until
GROUP BY 2, span.until
ON CONFLICT (kind, labels) DO UPDATE SET
    count = tallies.count + excluded.count, seconds = tallies.seconds + excluded.seconds, until = excluded.until
"""


@dataclass(frozen=True)
class Counted:
    """How often something happened, and the sum of its seconds."""

    kind: str
    labels: Sequence[str]
    count: int
    seconds: float


def fold(session: Session, lag_seconds: float = LAG_seconds) -> None:
    """Count what ended since. Two at once wait for each other, so nothing is counted twice."""
    connection = session.connection()
    connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtextextended('tallies', 0))")
    for kind, (table, at, labels, seconds) in _KINDS.items():
        statement = _FOLD.format(table=table, at=at, labels=labels, seconds=seconds)
        connection.exec_driver_sql(statement, {"kind": kind, "lag": lag_seconds})


def read(session: Session) -> Sequence[Counted]:
    """All of them, in order."""
    columns = Tally.kind, Tally.labels, Tally.count, Tally.seconds
    return [Counted(*row) for row in session.execute(select(*columns).order_by(Tally.kind, Tally.labels))]
