"""The command that starts the whole service on this machine."""

import os
import signal
from pathlib import Path
from typing import Annotated

import typer

from lathe.cli.output import console, errors
from lathe.cli.session import home


def up(
    data: Annotated[
        Path | None, typer.Option(help="Folder for everything that is kept; LATHE_HOME, else ~/.lathe.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any free port.")] = 8321,
    model_root: Annotated[
        list[Path] | None,
        typer.Option(help="Folder below which recipes may name local models and data; may be repeated."),
    ] = None,
) -> None:
    """Start the service and all it needs on this machine; Ctrl-C stops it."""
    from lathe.local.stack import Stack  # and with it the HTTP client that asks whether it is well

    environment = (
        {"LATHE_MODEL_ROOTS": os.pathsep.join(str(root.absolute()) for root in model_root)} if model_root else {}
    )
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        with Stack(data or home(), host=host, port=port, environment=environment, say=_say) as stack:
            try:
                console.out(f"dashboard  {stack.url}/sign-in#key={stack.api_key}", highlight=False)
                console.out(f"API        {stack.url}\nAPI key    {stack.api_key}", highlight=False)
                _say("ready; Ctrl-C stops it")
                signal.pause()
            finally:
                # From here on it only takes time: a second Ctrl-C must not leave things half stopped.
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    signal.signal(number, signal.SIG_IGN)
                _say("stopping; a running job is given back to the queue")
    except KeyboardInterrupt:
        _say("stopped")


def _say(text: str) -> None:
    errors.print(text, markup=False, highlight=False, soft_wrap=True)
