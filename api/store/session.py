"""Database sessions. The only place that knows SQLAlchemy's form of a database URL."""

from sqlalchemy import URL, Engine, create_engine, make_url
from sqlalchemy.orm import Session, sessionmaker

Sessions = sessionmaker[Session]

_NOTICE_A_DEAD_PEER = {
    "tcp_user_timeout": 20_000,  # ms
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
"""Without these a lease holder would wait hours for a database host that went away without a word."""


def sqlalchemy_url(database_url: str) -> URL:
    """The URL with its driver named. Raises `ValueError` for anything but PostgreSQL."""
    url = make_url(database_url)
    if url.get_backend_name() not in {"postgresql", "postgres"}:
        raise ValueError(f"LATHE_DATABASE_URL must start with postgresql://, got {url.drivername}://")
    return url.set(drivername="postgresql+psycopg")


def make_engine(database_url: str, *, pool_size: int = 5) -> Engine:
    """A pool of connections that are tested before use, so that a restarted server costs nothing."""
    return create_engine(
        sqlalchemy_url(database_url),
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_pre_ping=True,
        pool_timeout=10,
        connect_args={"connect_timeout": 5, "options": "-c timezone=utc", **_NOTICE_A_DEAD_PEER},
    )


def make_sessions(engine: Engine) -> Sessions:
    """Sessions for `with sessions.begin() as session`: commit at the end, rollback on an error."""
    return sessionmaker(engine, expire_on_commit=False)
