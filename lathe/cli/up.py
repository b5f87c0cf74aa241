"""The command that starts the whole service on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from lathe.cli.session import home


def up(
    data: Annotated[
        Path | None, typer.Option(help="Folder for everything that is kept; LATHE_HOME when absent.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any free port.")] = 8321,
) -> None:
    """Start the service and all it needs on this machine; Ctrl-C stops it."""
    raise NotImplementedError(data or home(), host, port)
