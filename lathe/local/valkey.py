"""An embedded Valkey (or Redis): the broker."""

import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import Signals

from lathe.local.binaries import find_valkey
from lathe.local.folder import write_private
from lathe.local.process import Command, Manner
from lathe.local.server import HOST, Server


@contextmanager
def running(data_dir: Path, *, durable: bool = True) -> Iterator[str]:
    """A `redis://` URL that works inside the block; `durable=False` (tests) keeps nothing on disk."""
    with Valkey(data_dir, durable=durable) as url:
        yield url


class Valkey(Server):
    """Valkey on loopback TCP; the password is in a 0600 file, never in the process list."""

    name = "valkey"
    stop_steps = ((Signals.SIGTERM, 20.0),)
    death_signal = Signals.SIGTERM

    def _prepare(self) -> None:
        self._binaries = find_valkey()
        self._password = secrets.token_hex(24)  # new each time: an answer to it proves that the server is ours
        (self.folder.path / "valkey").mkdir(exist_ok=True, mode=0o700)

    def _command(self, port: int, lock: int) -> tuple[Command, Manner]:
        home = self.folder.path / "valkey"
        config = home / "valkey.conf"
        write_private(config, self._config(port))
        return [self._binaries.server_path, config], Manner(home, death_signal=self.death_signal, keep_open=(lock,))

    def _config(self, port: int) -> str:
        settings = {
            "bind": HOST,
            "port": port,
            "requirepass": self._password,
            "appendonly": "yes" if self.durable else "no",
            "appendfsync": "everysec",
            "save": '""',
            "maxmemory-policy": "noeviction",  # a broker must refuse, never forget
            "dir": ".",
        }
        return "".join(f"{name} {value}\n" for name, value in settings.items())

    def _is_ready(self, pid: int, port: int) -> bool:
        try:
            with socket.create_connection((HOST, port), timeout=1) as connection:
                connection.sendall(f"AUTH {self._password}\r\nPING\r\n".encode())
                answer = connection.makefile("rb")
                return answer.readline() == b"+OK\r\n" and answer.readline() == b"+PONG\r\n"
        except OSError:
            return False

    def _url(self, port: int) -> str:
        return f"redis://:{self._password}@{HOST}:{port}/0"
