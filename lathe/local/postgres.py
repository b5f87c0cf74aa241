"""An embedded PostgreSQL."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import Signals

from lathe.local import identity
from lathe.local.binaries import find_postgres
from lathe.local.errors import ServerFailed
from lathe.local.folder import write_private
from lathe.local.process import Command, Manner, run
from lathe.local.server import HOST, Server

USER = "lathe"
FAST_AND_FORGETFUL = ("-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off")


@contextmanager
def running(data_dir: Path, *, durable: bool = True) -> Iterator[str]:
    """A `postgresql://` URL that works inside the block; `durable=False` (tests) may lose data with the power."""
    with Postgres(data_dir, durable=durable) as url:
        yield url


class Postgres(Server):
    """PostgreSQL on loopback TCP with a random password (scram-sha-256) and no Unix socket."""

    name = "postgres"
    stop_steps = ((Signals.SIGINT, 30.0), (Signals.SIGQUIT, 10.0))
    death_signal = Signals.SIGINT

    def _prepare(self) -> None:
        self._berth = identity.choose(find_postgres(), self.folder.path / "postgres", root=os.geteuid() == 0)
        self._db = self._berth.home / "db"
        if not self._db.exists():
            self._make_cluster()

    def _make_cluster(self) -> None:
        draft, password_file = self._db.with_name("db.tmp"), self._berth.home / "pw"
        shutil.rmtree(draft, ignore_errors=True)
        write_private(password_file, self.folder.secret("postgres.password"))
        owner = self._berth.home.stat()
        os.chown(password_file, owner.st_uid, owner.st_gid)
        command: list[str | Path] = [self._berth.binaries.folder / "initdb", "-D", draft, "-U", USER]
        command += ["-A", "scram-sha-256", "--pwfile", password_file, "--locale=C.UTF-8", "-E", "UTF8"]
        try:
            done = run([*command, *(() if self.durable else ("--no-sync",))], self._manner(), timeout_seconds=300)
        finally:
            password_file.unlink()
        if done.returncode != 0:
            raise ServerFailed(
                f"initdb failed:\n{done.stderr[-2000:]}\n", remedy=f"Check the space in {self._db.parent}."
            )
        draft.rename(self._db)

    def _manner(self, lock: int | None = None) -> Manner:
        return Manner(
            folder=self._berth.home,
            identity=self._berth.identity,
            death_signal=self.death_signal,
            keep_open=() if lock is None else (lock,),
        )

    def _command(self, port: int, lock: int) -> tuple[Command, Manner]:
        # The lock proves that no server runs here, so a pid file is stale, whatever process has its number now.
        (self._db / "postmaster.pid").unlink(missing_ok=True)
        options = ["-h", HOST, "-p", str(port), "-c", "unix_socket_directories=", "-c", "max_connections=200"]
        options += () if self.durable else FAST_AND_FORGETFUL
        return [self._berth.binaries.server_path, "-D", self._db, *options], self._manner(lock)

    def _is_ready(self, pid: int, port: int) -> bool:
        """The postmaster writes its pid into line 1 and its state into line 8 of its pid file, as pg_ctl reads it."""
        try:
            lines = (self._db / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _url(self, port: int) -> str:
        # The database that initdb makes: making another would be a second step, with a crash in between.
        return f"postgresql://{USER}:{self.folder.secret('postgres.password')}@{HOST}:{port}/postgres"
