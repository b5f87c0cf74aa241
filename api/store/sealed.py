"""Every column of sealed texts: read in batches, and replaced where nobody else did meanwhile."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, select, tuple_, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from api.store import credentials, idempotency
from api.store.models import Credential, IdempotencyKey, WebhookEndpoint
from api.store.session import Sessions

BATCH_rows = 200


@dataclass(frozen=True)
class Kind:
    """One column, and the place that each value is sealed for, from its row's primary key."""

    name: str
    column: InstrumentedAttribute[Any]
    place: Callable[..., str]

    @property
    def primary_key(self) -> tuple[ColumnElement[Any], ...]:
        """The columns that name a row."""
        return self.column.parent.primary_key


KINDS = (
    Kind("Hub tokens", Credential.sealed_token, credentials.place),
    Kind("webhook secrets", WebhookEndpoint.sealed_secret, str),
    Kind("previous webhook secrets", WebhookEndpoint.previous_sealed_secret, str),
    Kind("stored answers", IdempotencyKey.sealed_answer, idempotency.place),
)
"""In this order: a webhook secret that is rotated meanwhile becomes a previous one, which comes later."""


def walk(sessions: Sessions, kind: Kind) -> Iterator[tuple[tuple[str, ...], str]]:
    """Key and sealed text of each row that has one. No transaction is open between the rows."""
    after: tuple[str, ...] | None = None
    while True:
        with sessions() as session:
            rows = _batch(session, kind, after)
        yield from rows
        if len(rows) < BATCH_rows:
            return
        after = rows[-1][0]


def replace(session: Session, kind: Kind, key: tuple[str, ...], sealed: str, anew: str) -> bool:
    """Put `anew` where `sealed` still is; False when the row is another by now, or gone."""
    same = (*(column == value for column, value in zip(kind.primary_key, key, strict=True)), kind.column == sealed)
    statement = update(kind.column.class_).where(*same).values({kind.column: anew})
    replaced = statement.returning(*kind.primary_key).execution_options(synchronize_session=False)
    return session.execute(replaced).first() is not None


def _batch(session: Session, kind: Kind, after: tuple[str, ...] | None) -> list[tuple[tuple[str, ...], str]]:
    statement = select(*kind.primary_key, kind.column).where(kind.column.is_not(None))
    if after is not None:
        statement = statement.where(tuple_(*kind.primary_key) > after)
    rows = session.execute(statement.order_by(*kind.primary_key).limit(BATCH_rows))
    return [(tuple(key), sealed) for *key, sealed in rows]
