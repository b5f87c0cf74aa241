"""What engines wrote on standard error, in the pieces that it came in."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, func, insert, literal, or_, select
from sqlalchemy.orm import Session

from api.store import events
from api.store.models import LogChunk

FLUSH = timedelta(seconds=2)
"""How long a line may have waited in a worker before it was stored with its time."""


@dataclass(frozen=True)
class Part:
    """Which pieces of a log to read; what is absent does not matter."""

    epoch: int | None = None
    """Those of one attempt."""
    times: Sequence[tuple[datetime, datetime | None]] | None = None
    """Those that were written in one of these spans: what a stage wrote, to the second."""

    def conditions(self, job_id: str) -> list[ColumnElement[bool]]:
        """As SQL."""
        found = [LogChunk.job_id == job_id]
        if self.epoch is not None:
            found.append(LogChunk.epoch == self.epoch)
        if self.times is not None:
            found.append(or_(literal(value=False), *(_within(*span) for span in self.times)))
        return found


WHOLE = Part()


def append(session: Session, job_id: str, epoch: int, text: str) -> None:
    """Add a piece, and wake who follows the job. The caller holds the job's row, so numbers have no gaps."""
    seq = select(func.coalesce(func.max(LogChunk.seq), 0) + 1).where(LogChunk.job_id == job_id)
    values = select(literal(job_id), seq.scalar_subquery(), literal(epoch), literal(text))
    session.execute(insert(LogChunk).from_select(["job_id", "seq", "epoch", "text"], values))
    session.execute(select(func.pg_notify(events.CHANNEL, job_id)))


def after(session: Session, job_id: str, seq: int, limit: int, part: Part = WHOLE) -> Sequence[LogChunk]:
    """Pieces above `seq`, oldest first."""
    statement = select(LogChunk).where(LogChunk.seq > seq, *part.conditions(job_id))
    return session.scalars(statement.order_by(LogChunk.seq).limit(limit)).all()


def before(
    session: Session, job_id: str, seq: int | None, size_bytes: int, part: Part = WHOLE
) -> tuple[Sequence[LogChunk], bool]:
    """The last pieces, or those below `seq`, of about so many bytes: oldest first, and whether there are more.

    At least one piece, however long it is.
    """
    newer = func.sum(func.octet_length(LogChunk.text)).over(order_by=LogChunk.seq.desc(), rows=(None, -1))
    below = [LogChunk.seq < seq] if seq is not None else []
    sized = select(LogChunk.seq, func.coalesce(newer, 0).label("newer")).where(*below, *part.conditions(job_id))
    each = sized.subquery()
    first = session.scalar(select(func.min(each.c.seq)).where(each.c.newer < size_bytes))
    if first is None:
        return [], False
    statement = select(LogChunk).where(LogChunk.seq >= first, *below, *part.conditions(job_id))
    older = select(LogChunk.seq).where(LogChunk.seq < first, *part.conditions(job_id)).limit(1)
    return session.scalars(statement.order_by(LogChunk.seq)).all(), session.scalar(older) is not None


def _within(begin: datetime, end: datetime | None) -> ColumnElement[bool]:
    return (LogChunk.at >= begin) & ((LogChunk.at <= end + FLUSH) if end else literal(value=True))
