"""What engines wrote on standard error, in the pieces that it came in."""

from collections.abc import Sequence

from sqlalchemy import func, insert, literal, select
from sqlalchemy.orm import Session

from api.store import events
from api.store.models import LogChunk


def append(session: Session, job_id: str, epoch: int, text: str) -> None:
    """Add a piece, and wake who follows the job. The caller holds the job's row, so numbers have no gaps."""
    seq = select(func.coalesce(func.max(LogChunk.seq), 0) + 1).where(LogChunk.job_id == job_id)
    values = select(literal(job_id), seq.scalar_subquery(), literal(epoch), literal(text))
    session.execute(insert(LogChunk).from_select(["job_id", "seq", "epoch", "text"], values))
    session.execute(select(func.pg_notify(events.CHANNEL, job_id)))


def after(session: Session, job_id: str, seq: int, limit: int) -> Sequence[LogChunk]:
    """Pieces above `seq`, oldest first."""
    statement = select(LogChunk).where(LogChunk.job_id == job_id, LogChunk.seq > seq)
    return session.scalars(statement.order_by(LogChunk.seq).limit(limit)).all()
