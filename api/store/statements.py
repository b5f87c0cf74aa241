"""Single statements, each a transaction of its own, asked from the event loop: no thread, and one round trip.

asyncpg, because an answer costs it a third of the time that psycopg takes; everything else goes through sessions.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

import asyncpg

from api.errors import DatabaseAway

POOL_connections = 10
ANSWER_seconds = 10.0
CLOSE_seconds = 2.0
_AWAY = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InterfaceError,
)
_NAMED = re.compile(r"%\((\w+)\)s")
_OF_LIBPQ = re.compile(r"connect_timeout|keepalives.*|tcp_user_timeout|gssencmode|channel_binding|sslcompression")
"""Parameters of a URL that say how libpq connects; asyncpg would hand them to the server."""


class Statement(NamedTuple):
    """A statement with numbered parameters, and their names in that order."""

    text: str
    names: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> "Statement":
        """From the form that psycopg takes, with `%(name)s`."""
        names = tuple(dict.fromkeys(_NAMED.findall(text)))
        return cls(_NAMED.sub(lambda found: f"${names.index(found[1]) + 1}", text), names)


class Statements:
    """A pool of connections that belong to one event loop."""

    def __init__(self, database_url: str) -> None:
        self._database_url = understood(database_url)
        self._pool: Any = None

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncGenerator[None]:
        """Ready as long as the block lasts; nothing is connected before it is needed."""
        self._pool = await asyncpg.create_pool(
            self._database_url,
            min_size=0,
            max_size=POOL_connections,
            timeout=ANSWER_seconds,
            command_timeout=ANSWER_seconds,
            connection_class=_Connection,
            server_settings={"timezone": "utc"},
        )
        try:
            yield
        finally:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._pool.close(), CLOSE_seconds)
            self._pool.terminate()

    async def row(self, statement: Statement, values: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """Run it: its row, if there is one. Raises `DatabaseAway`, after which nobody knows whether it was done."""
        try:
            found = await self._pool.fetchrow(statement.text, *(values[name] for name in statement.names))
        except asyncpg.DataError:
            raise  # a value that does not fit its column: a bug of ours, though the class lies below
        except _AWAY as error:
            raise DatabaseAway from error
        return None if found is None else tuple(found)


class _Connection(asyncpg.Connection):  # type: ignore[misc]  # the library has no types
    """Statements that leave nothing behind need no tidying up, which is a round trip."""

    def get_reset_query(self) -> str:
        return ""


def understood(database_url: str) -> str:
    """The URL without what only libpq understands."""
    parts = urlsplit(database_url)
    kept = [(name, value) for name, value in parse_qsl(parts.query) if not _OF_LIBPQ.fullmatch(name)]
    return parts._replace(query=urlencode(kept)).geturl()
