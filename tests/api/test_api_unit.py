"""Ids, the vault, settings and logs: what needs no server."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from api.errors import VaultError
from api.ids import is_id, new_id
from api.logs import hide_secrets
from api.settings import Settings
from api.vault import Vault

KEY = "k" * 40


def test_ids_sort_by_the_time_they_were_made_and_are_never_equal() -> None:
    first = new_id("job")
    time.sleep(0.002)
    later = [new_id("job") for _ in range(1000)]
    assert all(first < each for each in later)
    assert len(set(later)) == 1000
    assert all(is_id("job", each) for each in later)


@pytest.mark.parametrize(
    "text", ["", "job_", "job_\0" + "0" * 25, "job_" + "z" * 26, "evt_" + "0" * 26, "job_" + "0" * 27]
)
def test_what_is_no_id_is_known_without_the_database(text: str) -> None:
    assert not is_id("job", text)


def test_a_sealed_secret_opens_only_with_its_key_and_in_its_place() -> None:
    sealed = Vault(KEY).seal("hf_token", "credential/acme/main")
    assert "hf_token" not in sealed
    assert Vault(KEY).open(sealed, "credential/acme/main") == "hf_token"
    for vault, place in ((Vault("z" * 40), "credential/acme/main"), (Vault(KEY), "credential/other/main")):
        with pytest.raises(VaultError, match="cannot open"):
            vault.open(sealed, place)


def test_settings_come_from_the_environment_and_are_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "DATABASE_URL": "postgresql://u:pw@127.0.0.1/db",
        "DATA_DIR": "/srv/lathe",
        "SECRET_KEY": KEY,
        "MODEL_ROOTS": "/models:/data",
        "ALLOW_PRIVATE_WEBHOOKS": "hooks.internal, 10.0.0.0/8",
    }.items():
        monkeypatch.setenv(f"LATHE_{name}", value)
    settings = Settings()
    assert settings.model_roots == (Path("/models"), Path("/data"))
    assert settings.allow_private_webhooks == ("hooks.internal", "10.0.0.0/8")
    assert "pw" not in repr(settings)
    assert KEY not in repr(settings)
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]


def test_a_missing_secret_key_is_said_without_showing_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATHE_DATABASE_URL", "postgresql://u:hunter22@127.0.0.1/db")
    monkeypatch.delenv("LATHE_SECRET_KEY", raising=False)
    with pytest.raises(ValidationError, match="secret_key") as error:
        Settings(data_dir=Path("/srv"))
    assert "hunter22" not in str(error.value)


def test_logs_hide_what_looks_like_a_secret() -> None:
    texts = ["lk_" + "a" * 43, "token hf_abcdefghijkl", "whsec_" + "A" * 44, "postgresql://user:hunter22@127.0.0.1/db"]
    shown = json.dumps([hide_secrets(None, "info", {"event": text}) for text in texts])
    assert not any(secret in shown for secret in ("aaaa", "abcdef", "AAAA", "hunter22"))


def test_importing_the_service_loads_neither_torch_nor_celery() -> None:
    script = "import api.main, sys; print([m for m in ('torch', 'celery', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
