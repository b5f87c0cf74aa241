"""Time, always the database's: hosts may disagree, leases may not."""

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session


def in_seconds(seconds: float) -> ColumnElement[datetime]:
    """`now()` and so many seconds, computed by the database."""
    return func.now() + timedelta(seconds=seconds)


def now(session: Session) -> datetime:
    """When this transaction began, in UTC."""
    return session.execute(select(func.now())).scalar_one()
