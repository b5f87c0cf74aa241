"""The two servers that Lathe needs: given by URL, or embedded."""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from lathe.local.postgres import Postgres
from lathe.local.server import Server
from lathe.local.valkey import Valkey


class Servers:
    """`with Servers(data_dir) as servers:` gives `servers.database_url` and `servers.redis_url`.

    A URL in the environment (`LATHE_DATABASE_URL`, `LATHE_REDIS_URL`) is taken as it is; otherwise an embedded server
    is started in `data_dir`, or joined when another process runs it there. Raises `LocalServerError`.
    """

    database_url: str
    redis_url: str

    def __init__(self, data_dir: Path, *, durable: bool = True, environ: Mapping[str, str] = os.environ) -> None:
        self._database = Postgres(data_dir / "postgres", durable=durable)
        self._broker = Valkey(data_dir / "valkey", durable=durable)
        self._environ = environ
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.database_url = self._given_or_started("LATHE_DATABASE_URL", self._database, stack)
            self.redis_url = self._given_or_started("LATHE_REDIS_URL", self._broker, stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def revive(self) -> list[str]:
        """Start again, under the same URLs, the servers of ours that ended; their names. Call it now and then."""
        return [server.name for server in (self._database, self._broker) if server.revive()]

    def _given_or_started(self, variable: str, server: Server, stack: ExitStack) -> str:
        return self._environ.get(variable) or stack.enter_context(server)
