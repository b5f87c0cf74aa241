"""Commands about receivers of signed messages."""

import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from lathe.cli import webhook_listen
from lathe.cli.group import Commands
from lathe.cli.output import console, errors, print_each, print_json, print_table, tell_deleted
from lathe.cli.session import AsJson, connect
from lathe.webhook_models import WebhookDelivery, WebhookEndpoint, WebhookMessage, WebhookMessageStatus
from lathe.webhooks import unwrap

app = typer.Typer(cls=Commands, no_args_is_help=True, help="Receivers of signed messages about jobs.")
EndpointId = Annotated[str, typer.Argument(metavar="ENDPOINT", help="`whe_...`")]
MessageId = Annotated[str, typer.Argument(metavar="MESSAGE", help="`msg_...`")]
Events = Annotated[list[str] | None, typer.Option("--event", help="Only this type; may be repeated.")]


app.command("listen")(webhook_listen.listen)


@app.command("create")
def create(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where messages are posted to.")],
    event: Events = None,
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    as_json: AsJson = False,
) -> None:
    """Add a receiver and print its secret, this once."""
    wanted: Any = event
    with connect() as client:
        _tell_secret(client.webhook_endpoints.create(url, events=wanted, description=description), as_json)


@app.command("ls")
def ls(as_json: AsJson = False) -> None:
    """List receivers."""
    with connect() as client:
        _tell_endpoints(list(client.webhook_endpoints.list()), as_json)


@app.command("update")
def update(
    endpoint_id: EndpointId,
    url: Annotated[str | None, typer.Option(help="Where messages go from now on.")] = None,
    event: Events = None,
    description: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    enabled: Annotated[bool | None, typer.Option("--enable/--disable", help="Whether anything is sent.")] = None,
    as_json: AsJson = False,
) -> None:
    """Change a receiver; what is not named stays. Enabling one forgets what had failed."""
    wanted: Any = event
    with connect() as client:
        endpoint = client.webhook_endpoints.update(
            endpoint_id, url=url, events=wanted, description=description, enabled=enabled
        )
    if as_json:
        print_json(endpoint)
    else:
        console.out(f"{endpoint.id} {_state(endpoint)}", highlight=False)


@app.command("rm")
def remove(endpoint_id: EndpointId, as_json: AsJson = False) -> None:
    """Remove a receiver."""
    with connect() as client:
        client.webhook_endpoints.delete(endpoint_id)
    tell_deleted(endpoint_id, as_json)


@app.command("show")
def show(endpoint_id: EndpointId, as_json: AsJson = False) -> None:
    """Show one receiver, and whether anything is sent there."""
    with connect() as client:
        _tell_endpoints([client.webhook_endpoints.get(endpoint_id)], as_json)


@app.command("message")
def message(message_id: MessageId, as_json: AsJson = False) -> None:
    """Show what a message says, and whether it was delivered."""
    with connect() as client:
        found = client.webhook_messages.get(message_id)
    if as_json:
        print_json(found)
    else:
        _tell(found, as_json)
        print_json(found.payload)


@app.command("rotate")
def rotate(endpoint_id: EndpointId, as_json: AsJson = False) -> None:
    """Give a receiver a new secret and print it, this once. The old one signs too for a day."""
    with connect() as client:
        _tell_secret(client.webhook_endpoints.rotate_secret(endpoint_id), as_json)


@app.command("test")
def send_test(endpoint_id: EndpointId, as_json: AsJson = False) -> None:
    """Send a message of type `webhook.test`; `deliveries` tells how the receiver took it."""
    with connect() as client:
        _tell(client.webhook_endpoints.test(endpoint_id), as_json)


@app.command("deliveries")
def deliveries(
    endpoint_id: EndpointId,
    status: Annotated[
        WebhookMessageStatus | None, typer.Option(help="Only of messages that are pending, delivered or failed.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many attempts.")] = 20,
    as_json: AsJson = False,
) -> None:
    """What was tried at a receiver, newest first."""
    with connect() as client:
        found = list(islice(client.webhook_endpoints.deliveries(endpoint_id, status=status), limit))
    if as_json:
        print_each(found)
    else:
        print_table(("message", "type", "attempt", "answer", "seconds", "at", "message is"), map(_row, found))


@app.command("redeliver")
def redeliver(message_id: MessageId, as_json: AsJson = False) -> None:
    """Send a message again, now."""
    with connect() as client:
        _tell(client.webhook_messages.redeliver(message_id), as_json)


@app.command("replay")
def replay(
    endpoint_id: EndpointId,
    since: Annotated[datetime, typer.Option(help="Messages made from this time on, in UTC.")],
    until: Annotated[datetime | None, typer.Option(help="And before this one; now when absent.")] = None,
    delivered: Annotated[bool, typer.Option("--delivered", help="Also those that were delivered.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send the messages of a period again: those that were given up."""
    statuses: Any = ("failed", "delivered") if delivered else ("failed",)
    end = until.replace(tzinfo=UTC) if until else None
    with connect() as client:
        answer = client.webhook_endpoints.replay(
            endpoint_id, since=since.replace(tzinfo=UTC), until=end, statuses=statuses
        )
    if as_json:
        print_json(answer)
    else:
        console.out(f"{answer.messages} messages are sent again", highlight=False)


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


def _tell_endpoints(found: Sequence[WebhookEndpoint], as_json: bool) -> None:
    if as_json:
        print_each(found)
    else:
        rows = [(item.id, item.url, ", ".join(item.events), _state(item)) for item in found]
        print_table(("endpoint", "url", "events", "state"), rows)


def _tell_secret(endpoint: WebhookEndpoint, as_json: bool) -> None:
    if as_json:
        print_json(endpoint)
        return
    console.out(f"{endpoint.id}\n{endpoint.secret}", highlight=False)
    errors.print("keep the secret: it is not shown again")


def _tell(message: WebhookMessage, as_json: bool) -> None:
    if as_json:
        print_json(message)
    else:
        console.out(f"{message.id} {message.status}", highlight=False)


def _state(endpoint: WebhookEndpoint) -> str:
    reasons = {
        "owner": "disabled by you",
        "gone": "disabled: the receiver answered 410",
        "undelivered": "disabled: message after message was given up",
        None: "disabled",
    }
    return "enabled" if endpoint.enabled else reasons[endpoint.disabled_reason]


def _row(item: WebhookDelivery) -> tuple[object, ...]:
    answer, at = item.status_code or item.error or "", f"{item.at:%Y-%m-%d %H:%M:%S}"
    return item.message_id, item.type, item.attempt, answer, f"{item.seconds:.2f}", at, item.message_status
