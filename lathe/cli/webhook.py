"""Commands about receivers of signed messages."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lathe.cli.group import Commands
from lathe.cli.output import console, errors, print_json, print_table
from lathe.cli.session import AsJson, connect
from lathe.webhooks import unwrap

app = typer.Typer(cls=Commands, no_args_is_help=True, help="Receivers of signed messages about jobs.")


@app.command("create")
def create(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where messages are posted to.")],
    event: Annotated[list[str] | None, typer.Option(help="Only this type; may be repeated.")] = None,
    as_json: AsJson = False,
) -> None:
    """Add a receiver and print its secret, this once."""
    wanted: Any = event
    with connect() as client:
        endpoint = client.webhook_endpoints.create(url, events=wanted)
    if as_json:
        print_json(endpoint)
        return
    console.out(f"{endpoint.id}\n{endpoint.secret}", highlight=False)
    errors.print("keep the secret: it is not shown again")


@app.command("ls")
def ls(as_json: AsJson = False) -> None:
    """List receivers."""
    with connect() as client:
        found = list(client.webhook_endpoints.list())
    if as_json:
        for item in found:
            print_json(item)
    else:
        print_table(("endpoint", "url", "events"), [(item.id, item.url, ", ".join(item.events)) for item in found])


@app.command("rm")
def remove(endpoint_id: Annotated[str, typer.Argument(metavar="ENDPOINT", help="`whe_...`")]) -> None:
    """Remove a receiver."""
    with connect() as client:
        client.webhook_endpoints.delete(endpoint_id)


@app.command("verify")
def verify(
    message_id: Annotated[str, typer.Option("--id", help="The header `webhook-id`.")],
    timestamp: Annotated[str, typer.Option(help="The header `webhook-timestamp`.")],
    signature: Annotated[str, typer.Option(help="The header `webhook-signature`.")],
    body: Annotated[Path | None, typer.Option(help="File with the raw body; standard input when absent.")] = None,
) -> None:
    """Check the signature of a message with the secret in LATHE_WEBHOOK_SECRET (or from a prompt), and print it."""
    raw = body.read_bytes() if body else sys.stdin.buffer.read()
    secret = os.environ.get("LATHE_WEBHOOK_SECRET") or str(typer.prompt("Secret", hide_input=True))
    headers = {"webhook-id": message_id, "webhook-timestamp": timestamp, "webhook-signature": signature}
    print_json(unwrap(raw, headers, secret))
