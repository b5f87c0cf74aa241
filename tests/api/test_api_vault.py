"""Changing the service's key: what the old one sealed stays readable, is sealed again, and then needs it no more."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr, ValidationError
from sqlalchemy import text
from standardwebhooks import Webhook

from api import rotate
from api.errors import VaultError
from api.main import create_app
from api.settings import Settings
from api.store import credentials, keys, sealed, webhook_deliveries
from api.store.session import Sessions
from api.vault import Vault
from worker.webhooks import signed

pytestmark = pytest.mark.integration
A, B = "k" * 40, "b" * 40
TOKEN = "hf_of_acme"
HUB_TOKENS = sealed.KINDS[0]


@pytest.fixture
def rotated(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the command as an operator does, with these keys."""

    def run(*secret_keys: str) -> int:
        monkeypatch.setenv("LATHE_DATABASE_URL", settings.database_url)
        monkeypatch.setenv("LATHE_DATA_DIR", str(settings.data_dir))
        monkeypatch.setenv("LATHE_SECRET_KEY", secret_keys[0])
        monkeypatch.setenv("LATHE_OLD_SECRET_KEYS", ",".join(secret_keys[1:]))
        return rotate.main()

    return run


class Stored:
    """One of each kind of secret, all sealed with the key A; and whether they still do what they are for."""

    def __init__(self, client: TestClient, sessions: Sessions) -> None:
        self._sessions = sessions
        with sessions.begin() as session:
            _, self._key = keys.create(session, "acme")
        assert client.put("/v1/credentials/main", json={"token": TOKEN}).is_success
        self._answer = self._ask(client)
        place = self._answer.headers["location"]
        self._secrets = [client.post(f"{place}/rotate_secret").json()["secret"], self._answer.json()["secret"]]
        self._message_id = client.post(f"{place}/test").json()["id"]

    def works_with(self, *secret_keys: str) -> bool:
        """Token, both signatures, the stored answer. Raises `VaultError` for the first that no key opens."""
        settings = _settings(self._sessions, *secret_keys)
        with self._sessions.begin() as session:
            token = credentials.token(session, settings.vault, "acme", "main")
            session.execute(text("UPDATE webhook_messages SET wake_at = now()"))
            outgoing = webhook_deliveries.begin(session, settings.vault, self._message_id)
        assert outgoing is not None
        for shown_to_its_owner in self._secrets:
            Webhook(shown_to_its_owner).verify("{}", signed(outgoing, "{}"))
        with TestClient(create_app(settings), headers={"Authorization": f"Bearer {self._key}"}) as client:
            again = self._ask(client)
        return (token, again.json()) == (TOKEN, self._answer.json())

    def _ask(self, client: TestClient) -> Any:
        wanted = {"url": "https://hooks.example.com/lathe"}
        return client.post("/v1/webhook_endpoints", json=wanted, headers={"Idempotency-Key": "once"})


@pytest.fixture
def stored(client: TestClient, sessions: Sessions) -> Stored:
    return Stored(client, sessions)


def _settings(sessions: Sessions, *secret_keys: str) -> Settings:
    url = sessions.kw["bind"].url.set(drivername="postgresql").render_as_string(hide_password=False)
    first, *old = map(SecretStr, secret_keys)
    return Settings(database_url=url, data_dir=Path("/nonexistent"), secret_key=first, old_secret_keys=tuple(old))


def _opening(sessions: Sessions, secret_key: str) -> Counter[str]:
    """How many values of each kind the key opens alone."""
    vault, found = Vault(secret_key), Counter[str]()
    for kind in sealed.KINDS:
        for key, value in sealed.walk(sessions, kind):
            try:
                vault.open(value, kind.place(*key))
            except VaultError:
                continue
            found[kind.name] += 1
    return found


def test_every_sealed_column_is_one_that_is_sealed_again(sessions: Sessions) -> None:
    with sessions() as session:
        columns = session.execute(
            text("SELECT table_name, column_name FROM information_schema.columns WHERE column_name LIKE '%sealed%'")
        ).all()
    assert set(map(tuple, columns)) == {(kind.column.class_.__tablename__, kind.column.key) for kind in sealed.KINDS}


def test_a_change_of_the_key_loses_nothing_and_ends_the_old_one(
    stored: Stored, sessions: Sessions, rotated: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    every = Counter({"Hub tokens": 1, "webhook secrets": 1, "previous webhook secrets": 1, "stored answers": 1})
    assert (_opening(sessions, A), _opening(sessions, B)) == (every, Counter())
    assert stored.works_with(A)
    assert stored.works_with(B, A)
    with pytest.raises(VaultError, match="credential/acme/main"):
        stored.works_with(B)
    assert rotated(B, "z" * 40, A) == 0
    assert capsys.readouterr().out.splitlines() == [f"{name}: 1 sealed again, 0 already were" for name in every]
    assert (_opening(sessions, A), _opening(sessions, B)) == (Counter(), every)
    assert stored.works_with(B)
    assert rotated(B) == 0
    assert capsys.readouterr().out.splitlines() == [f"{name}: 0 sealed again, 1 already were" for name in every]


def test_what_no_key_opens_is_named_and_does_not_stop_the_others(
    stored: Stored, sessions: Sessions, rotated: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    with sessions.begin() as session:
        credentials.put(session, Vault("z" * 40), "acme", "foreign", "hf_lost")
        [lost] = session.scalars(text("SELECT sealed_token FROM credentials WHERE name = 'foreign'"))
    assert rotated(B, A) == 1
    told = capsys.readouterr()
    assert told.err.splitlines() == ["Hub tokens: no key opens the one of 'credential/acme/foreign'"]
    assert told.out.splitlines()[0] == "Hub tokens: 1 sealed again, 0 already were, 1 open with no key"
    assert not [secret for secret in (lost, A, B, TOKEN) if secret in told.out + told.err]
    assert stored.works_with(B)


def test_it_may_be_stopped_in_the_middle_and_run_again(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "BATCH_rows", 2)
    with sessions.begin() as session:
        for number in range(5):
            credentials.put(session, Vault(A), "acme", f"t{number}", f"hf_{number}")

    class Stopped(Vault):
        def reseal(self, sealed: str, place: str) -> str | None:
            if place.endswith("t3"):
                raise KeyboardInterrupt
            return super().reseal(sealed, place)

    with pytest.raises(KeyboardInterrupt):
        rotate.rotate(sessions, Stopped(B, [A]), HUB_TOKENS)
    assert rotate.rotate(sessions, Vault(B, [A]), HUB_TOKENS) == {"kept": 3, "sealed": 2}
    assert _opening(sessions, B) == {HUB_TOKENS.name: 5}


def test_what_its_owner_changes_meanwhile_is_not_overwritten(stored: Stored, sessions: Sessions) -> None:
    class Interrupted(Vault):
        def reseal(self, sealed: str, place: str) -> str | None:
            with sessions.begin() as session:
                credentials.put(session, Vault(B), "acme", "main", "hf_newer")
            return super().reseal(sealed, place)

    assert rotate.rotate(sessions, Interrupted(B, [A]), HUB_TOKENS) == {"changed": 1}
    with sessions() as session:
        assert credentials.token(session, Vault(B), "acme", "main") == "hf_newer"
    assert rotate.rotate(sessions, Vault(B), HUB_TOKENS) == {"kept": 1}


def test_old_keys_are_long_and_not_shown(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"database_url": settings.database_url, "data_dir": settings.data_dir, "secret_key": SecretStr(B)}
    monkeypatch.setenv("LATHE_OLD_SECRET_KEYS", f" {A}, {'o' * 32}")
    assert len(Settings(**given).old_secret_keys) == 2
    assert A not in repr(Settings(**given))
    monkeypatch.setenv("LATHE_OLD_SECRET_KEYS", f"{A},tooshort")
    with pytest.raises(ValidationError) as error:
        Settings(**given)
    assert "tooshort" not in str(error.value)
