"""Measured numbers of stages, and their curves at a resolution that a reader can use."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import aggregate_order_by, insert
from sqlalchemy.orm import Session

from api.store.models import MetricPoint
from optcore.events import Metric


class Bucket(NamedTuple):
    """Neighbouring points of a curve, as one."""

    stage: str
    name: str
    first_step: int
    last_step: int
    mean: float
    low: float
    high: float
    last: float
    """Of the last step."""


def put(session: Session, job_id: str, metrics: Sequence[Metric]) -> None:
    """Store points; a step that was measured before is measured anew. A metric without steps is one point."""
    points = {(each.stage, each.name, each.step or 0): each.value for each in metrics}
    if not points:
        return
    rows = [{"job_id": job_id, "stage": s, "name": n, "step": i, "value": v} for (s, n, i), v in points.items()]
    statement = insert(MetricPoint).values(rows)
    measured = {"value": statement.excluded.value, "at": func.now()}
    session.execute(statement.on_conflict_do_update(index_elements=["job_id", "stage", "name", "step"], set_=measured))


def curves(session: Session, job_id: str, *, points: int, stage: str | None, name: str | None) -> list[Bucket]:
    """Every curve of a job in at most `points` buckets of about as many measurements each, computed by the database."""
    place = (MetricPoint.stage, MetricPoint.name)
    bucket = func.ntile(points).over(partition_by=place, order_by=MetricPoint.step).label("bucket")
    chosen = select(MetricPoint, bucket).where(MetricPoint.job_id == job_id)
    if stage is not None:
        chosen = chosen.where(MetricPoint.stage == stage)
    if name is not None:
        chosen = chosen.where(MetricPoint.name == name)
    each = chosen.subquery()
    last = func.array_agg(aggregate_order_by(each.c.value, each.c.step.desc()))
    statement = (
        select(
            each.c.stage,
            each.c.name,
            func.min(each.c.step),
            func.max(each.c.step),
            func.avg(each.c.value),
            func.min(each.c.value),
            func.max(each.c.value),
            last[1],
        )
        .group_by(each.c.stage, each.c.name, each.c.bucket)
        .order_by(each.c.stage, each.c.name, each.c.bucket)
    )
    return [Bucket(*row) for row in session.execute(statement)]
