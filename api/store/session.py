"""Database sessions. The only place that knows SQLAlchemy's form of a database URL."""

import json
import re
import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry

Sessions = sessionmaker[Session]

_ESCAPED_NUL = "\\u0000"
_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")

NOTICE_A_DEAD_PEER: Mapping[str, Any] = {
    "tcp_user_timeout": 20_000,  # ms
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
"""Without these a lease holder would wait hours for a database host that went away without a word."""


IDLE_SECONDS = 20
"""Within a transaction we never wait this long, so one that does belongs to a process that is stopped or gone mute.
The server ends it: the rows it locked are a job that nobody could claim, cancel or expire. Well under a lease."""


def sqlalchemy_url(database_url: str) -> URL:
    """The URL with its driver named. Raises `ValueError` for anything but PostgreSQL."""
    url = make_url(database_url)
    if url.get_backend_name() not in {"postgresql", "postgres"}:
        raise ValueError(f"LATHE_DATABASE_URL must start with postgresql://, got {url.drivername}://")
    return url.set(drivername="postgresql+psycopg")


def make_engine(
    database_url: str, *, pool_size: int = 5, idle_seconds: int = IDLE_SECONDS, fresh_seconds: float = 0
) -> Engine:
    """A pool of connections that are tested before use, so that a restarted server costs nothing.

    One that was used less than `fresh_seconds` ago is trusted: the test is a round trip. The server closes a connection
    that rests inside a transaction for `idle_seconds`.
    """
    options = f"-c timezone=utc -c idle_in_transaction_session_timeout={idle_seconds * 1000}"
    engine = create_engine(
        sqlalchemy_url(database_url),
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_pre_ping=not fresh_seconds,
        pool_timeout=10,
        json_serializer=storable_json,
        connect_args={"connect_timeout": 5, "options": options, **NOTICE_A_DEAD_PEER},
    )
    if fresh_seconds:
        _test_what_rested(engine, fresh_seconds)
    return engine


def _test_what_rested(engine: Engine, fresh_seconds: float) -> None:
    def put_down(connection: Any, record: ConnectionPoolEntry) -> None:
        record.info["rests_since"] = time.monotonic()

    def take_up(connection: Any, record: ConnectionPoolEntry, proxy: Any) -> None:
        if time.monotonic() - record.info.get("rests_since", time.monotonic()) < fresh_seconds:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise DisconnectionError from error  # the pool tries another one

    event.listen(engine, "checkin", put_down)
    event.listen(engine, "checkout", take_up)


def make_sessions(engine: Engine) -> Sessions:
    """Sessions for `with sessions.begin() as session`: commit at the end, rollback on an error."""
    return sessionmaker(engine, expire_on_commit=False)


def storable_json(value: Any) -> str:
    """JSON that PostgreSQL takes: it refuses the NUL character, which an engine's message may quote from a file."""
    text = json.dumps(value)
    return _NUL.sub(r"\1\\ufffd", text) if _ESCAPED_NUL in text else text
