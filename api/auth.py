"""Who is calling: the owner that an API key speaks for."""

from api.errors import Unauthorized
from api.store import keys
from api.store.session import Sessions

MAX_KEY_characters = 200


def owner_of(sessions: Sessions, key: str | None) -> str:
    """The owner. Raises `Unauthorized`. Takes a session of its own, so that a stream holds none."""
    if not key:
        raise _refused("no API key", "send the header `Authorization: Bearer lk_...`")
    owner_id = None
    if len(key) <= MAX_KEY_characters:
        with sessions() as session:
            owner_id = keys.owner_of(session, key)
    if owner_id is None:
        raise _refused("the API key is not known", "make one with `python -m api.keys create --owner NAME`")
    return owner_id


def _refused(message: str, remedy: str) -> Unauthorized:
    error = Unauthorized(message, remedy=remedy)
    error.headers = {"WWW-Authenticate": "Bearer"}
    return error
