"""Who is calling: the project that an API key speaks for, and what the key allows."""

from dataclasses import dataclass

from api.errors import Forbidden, Unauthorized
from api.store import keys
from api.store.session import Sessions
from lathe.models import Scope

MAX_KEY_characters = 200


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


def caller_of(sessions: Sessions, key: str | None) -> Caller:
    """The caller. Raises `Unauthorized`. Takes a session of its own, so that a stream holds none."""
    if not key:
        raise _refused("no API key", "send the header `Authorization: Bearer lk_...`")
    found = None
    if len(key) <= MAX_KEY_characters:
        with sessions.begin() as session:
            found = keys.find(session, key)
            if found is not None and keys.is_stale(found[0]):
                keys.touch(session, found[0].id)
    if found is None:
        raise _refused("the API key is not known, is revoked, or is expired", "have one made: POST /v1/keys")
    row, project_name = found
    return Caller(row.project_id, project_name, row.id, frozenset(row.scopes))


def _refused(message: str, remedy: str) -> Unauthorized:
    error = Unauthorized(message, remedy=remedy)
    error.headers = {"WWW-Authenticate": "Bearer"}
    return error
