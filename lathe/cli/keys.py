"""Commands about API keys of the project."""

from typing import Annotated, Any

import typer

from lathe.cli.choices import some_of
from lathe.cli.group import Commands
from lathe.cli.output import console, errors, print_each, print_json, print_table, tell_deleted
from lathe.cli.session import AsJson, connect
from lathe.models import SCOPES, ApiKey

app = typer.Typer(cls=Commands, no_args_is_help=True, help="API keys of the project.")


@app.command("create")
def create(
    scope: Annotated[list[str], some_of(SCOPES, "What it allows")],
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    days: Annotated[int | None, typer.Option(min=1, help="Days until it expires; never when absent.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, this once. It is allowed no more than the key that you use."""
    wanted: Any = scope
    with connect() as client:
        made = client.keys.create(name, scopes=wanted, expires_in_days=days)
    if as_json:
        print_json(made)
        return
    console.out(f"{made.id}\n{made.key}", highlight=False)
    errors.print("keep the key: it is not shown again")


@app.command("ls")
def ls(as_json: AsJson = False) -> None:
    """List the project's keys."""
    with connect() as client:
        found = list(client.keys.list())
    if as_json:
        print_each(found)
    else:
        print_table(("key", "begins with", "name", "scopes", "last used", "state"), map(_row, found))


@app.command("revoke")
def revoke(key_id: Annotated[str, typer.Argument(metavar="KEY", help="`key_...`")], as_json: AsJson = False) -> None:
    """Refuse a key from now on."""
    with connect() as client:
        client.keys.revoke(key_id)
    tell_deleted(key_id, as_json)


def _row(key: ApiKey) -> tuple[object, ...]:
    used = f"{key.last_used_at:%Y-%m-%d %H:%M}" if key.last_used_at else ""
    state = "revoked" if key.revoked_at else f"until {key.expires_at:%Y-%m-%d}" if key.expires_at else "in use"
    return key.id, key.prefix, key.name, ", ".join(key.scopes), used, state
