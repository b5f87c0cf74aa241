"""Who is calling: the project that an API key speaks for, and what the key allows."""

import hashlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from api.errors import Forbidden, Unauthorized
from api.listener import Listener
from api.store import keys
from api.store.session import Sessions
from lathe.models import Scope

MAX_KEY_characters = 200
REMEMBERED_seconds = 60.0
"""How long a key is taken for what it was when the database was asked, if it says nothing: its last use is written
then too."""


@dataclass(frozen=True)
class Caller:
    """A request's project, and the key that it came with."""

    project_id: str
    project_name: str
    key_id: str
    scopes: frozenset[str]

    def require(self, scope: Scope) -> None:
        """Raises `Forbidden` when the key does not allow it."""
        if scope not in self.scopes:
            raise Forbidden(f"the API key lacks the scope {scope}", remedy="use a key that has it, or have one made")


@dataclass(frozen=True)
class _Remembered:
    caller: Caller
    expires_at: datetime | None
    asked_at: float

    def holds(self) -> bool:
        over = self.expires_at is not None and datetime.now(UTC) >= self.expires_at
        return not over and time.monotonic() - self.asked_at < REMEMBERED_seconds


class Keyring:
    """The callers of keys that were used a moment ago, so that not every request asks the database.

    A change of any key is told by the database, and empties the ring; while it cannot tell us, nothing is remembered.
    """

    def __init__(self, sessions: Sessions, listener: Listener) -> None:
        self._sessions = sessions
        self._listener = listener
        self._callers: dict[bytes, _Remembered] = {}
        self._changes = 0
        listener.call(keys.CHANNEL, self.forget)

    def remembered(self, key: str | None) -> Caller | None:
        """The caller, if that is known without asking the database."""
        if not key or not self._listener.connected:
            return None
        known = self._callers.get(_digest(key))
        return known.caller if known is not None and known.holds() else None

    def caller(self, key: str | None) -> Caller:
        """The caller. Raises `Unauthorized`. Takes a session of its own, so that a stream holds none."""
        return self.remembered(key) or self._look_up(key)

    def forget(self) -> None:
        """Ask the database about every key again."""
        self._changes += 1
        self._callers.clear()

    def _look_up(self, key: str | None) -> Caller:
        if not key:
            raise _refused("no API key", "send the header `Authorization: Bearer lk_...`")
        found, changes = None, self._changes
        if len(key) <= MAX_KEY_characters:
            with self._sessions.begin() as session:
                found = keys.find(session, key)
                if found is not None and keys.is_stale(found[0]):
                    keys.touch(session, found[0].id)
        if found is None:
            raise _refused("the API key is not known, is revoked, or is expired", "have one made: POST /v1/keys")
        row, project_name = found
        caller = Caller(row.project_id, project_name, row.id, frozenset(row.scopes))
        if changes == self._changes:  # else the answer may be older than what changed
            self._callers[_digest(key)] = _Remembered(caller, row.expires_at, time.monotonic())
        return caller


def _digest(key: str) -> bytes:
    """What is kept of a key in memory, too."""
    return hashlib.sha256(key.encode(errors="replace")).digest()


def _refused(message: str, remedy: str) -> Unauthorized:
    error = Unauthorized(message, remedy=remedy)
    error.headers = {"WWW-Authenticate": "Bearer"}
    return error
