"""Keys that are remembered: no question to the database while nothing changes, and no answer that is out of date."""

import time
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from fixtures.waiting import until
from sqlalchemy import event, text, update

from api.auth import Keyring, REMEMBERED_seconds
from api.errors import Unauthorized
from api.listener import Listener
from api.main import create_app
from api.settings import Settings
from api.state import State
from api.store import keys
from api.store.models import ApiKey
from api.store.session import Sessions

pytestmark = pytest.mark.integration


@pytest.fixture
def state(settings: Settings) -> Iterator[State]:
    """Of an application that listens."""
    app = create_app(settings)
    with TestClient(app):
        state: State = app.state.lathe
        until(lambda: state.listener.connected)
        yield state


@pytest.fixture
def made(sessions: Sessions) -> tuple[ApiKey, str]:
    with sessions.begin() as session:
        return keys.create(session, "acme")


def _refused(keyring: Keyring, key: str) -> bool:
    try:
        keyring.caller(key)
    except Unauthorized:
        return True
    return False


def test_the_database_is_asked_once(state: State, made: tuple[ApiKey, str]) -> None:
    asked: list[str] = []
    event.listen(state.engine, "before_cursor_execute", lambda *call: asked.append(call[2]))
    first = state.keyring.caller(made[1])
    questions = len(asked)
    assert questions > 0
    assert all(state.keyring.caller(made[1]) == first for _ in range(20))
    assert len(asked) == questions
    assert made[1].encode() not in repr(vars(state.keyring)).encode(), "the key itself is not kept"


@pytest.mark.parametrize("change", ["revoked_at = now()", "expires_at = now()", "scopes = '{}'"])
def test_any_change_of_a_key_is_heard_of(
    state: State, sessions: Sessions, made: tuple[ApiKey, str], change: str
) -> None:
    """Even one that an operator makes with SQL."""
    before = state.keyring.caller(made[1])
    with sessions.begin() as session:
        session.execute(text(f"UPDATE api_keys SET {change} WHERE id = :id"), {"id": made[0].id})
    until(lambda: _refused(state.keyring, made[1]) or state.keyring.caller(made[1]) != before)


def test_a_use_that_is_written_down_empties_nothing(state: State, sessions: Sessions, made: tuple[ApiKey, str]) -> None:
    state.keyring.caller(made[1])
    with sessions.begin() as session:
        session.execute(update(ApiKey).values(last_used_at=None))
        keys.touch(session, made[0].id)
        session.execute(text("SELECT pg_notify('job_events', 'job_x')"))
    time.sleep(0.2)
    assert state.keyring.remembered(made[1]) is not None


def test_nothing_is_remembered_while_nobody_listens(
    sessions: Sessions, database_url: str, made: tuple[ApiKey, str]
) -> None:
    listener = Listener(database_url)
    keyring = Keyring(sessions, listener)
    assert keyring.caller(made[1]).project_id == "acme"
    assert keyring.remembered(made[1]) is None
    with sessions.begin() as session:
        keys.revoke(session, "acme", made[0].id)
    assert _refused(keyring, made[1])


def test_what_changed_while_nobody_listened_is_asked_again(
    state: State, sessions: Sessions, made: tuple[ApiKey, str]
) -> None:
    state.keyring.caller(made[1])
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
    with sessions.begin() as session:
        assert session.execute(text(others)).all()
        keys.revoke(session, "acme", made[0].id)
    until(lambda: not state.listener.connected)
    assert _refused(state.keyring, made[1])
    until(lambda: state.listener.connected)
    assert _refused(state.keyring, made[1])


def test_an_answer_that_a_change_overtook_is_not_kept(
    state: State, made: tuple[ApiKey, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = keys.find

    def slowly(*arguments: object) -> object:
        found = find(*arguments)  # type: ignore[arg-type]
        state.keyring.forget()
        return found

    monkeypatch.setattr(keys, "find", slowly)
    state.keyring.caller(made[1])
    assert state.keyring.remembered(made[1]) is None


def test_a_remembered_key_still_expires(
    state: State, sessions: Sessions, monkeypatch: pytest.MonkeyPatch, made: tuple[ApiKey, str]
) -> None:
    state.keyring.caller(made[1])
    later = time.monotonic() + REMEMBERED_seconds + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert state.keyring.remembered(made[1]) is None
