"""Commands about Hub tokens that the service keeps for you."""

import sys
from typing import Annotated

import typer

from lathe.cli.group import Commands
from lathe.cli.output import print_each, print_json, print_table, say, tell_deleted
from lathe.cli.session import AsJson, connect
from lathe.errors import LatheError

app = typer.Typer(cls=Commands, no_args_is_help=True, help="Hub tokens that recipes refer to by name.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="The name that recipes use, such as `hub-main`.")]
MAX_TOKEN_chars = 4096


@app.command("set")
def put(name: Name, as_json: AsJson = False) -> None:
    """Store or replace a token, read from a prompt or from standard input; never from the command line."""
    token = _read_secret("Token")
    with connect() as client:
        stored = client.credentials.put(name, token)
    if as_json:
        print_json(stored)
    else:
        say(f"stored {name}")


@app.command("ls")
def ls(as_json: AsJson = False) -> None:
    """List the names; tokens are never shown."""
    with connect() as client:
        found = list(client.credentials.list())
    if as_json:
        print_each(found)
    else:
        print_table(("name", "changed"), [(item.name, f"{item.updated_at:%Y-%m-%d %H:%M}") for item in found])


@app.command("rm")
def remove(name: Name, as_json: AsJson = False) -> None:
    """Forget a token."""
    with connect() as client:
        client.credentials.delete(name)
    tell_deleted(name, as_json)


def _read_secret(label: str) -> str:
    piped = not sys.stdin.isatty()
    token = sys.stdin.readline(MAX_TOKEN_chars) if piped else str(typer.prompt(label, hide_input=True))
    if not token.strip():
        raise LatheError("no token was given", remedy="type it at the prompt, or pipe it to standard input")
    return token.strip()
