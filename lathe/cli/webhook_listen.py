"""The command that shows webhooks as they come: for trying out a receiver before it is written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from lathe.cli.listening import Listener
from lathe.cli.output import console, print_json, printable_lines, say
from lathe.cli.session import AsJson, connect
from lathe.errors import LatheError, WebhookVerificationError
from lathe.webhook_models import WebhookPayload


def listen(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any free port.")] = 0,
    url: Annotated[
        str | None, typer.Option(help="Where the service reaches this machine, such as a tunnel's address.")
    ] = None,
    event: Annotated[list[str] | None, typer.Option("--event", help="Only this type; may be repeated.")] = None,
    messages: Annotated[int | None, typer.Option(min=1, help="Stop after so many.")] = None,
    as_json: AsJson = False,
) -> None:
    """Receive signed messages here and print them, until Ctrl-C.

    A receiver is added to the service and removed at the end. With LATHE_WEBHOOK_SECRET set, none is: messages to one
    that exists are checked with its secret. The service must be allowed to send to this machine.
    """

    def take(message_id: str, payload: WebhookPayload) -> None:
        if as_json:
            print_json({"id": message_id, **payload.model_dump(mode="json")})
        else:
            what = f"{payload.timestamp:%Y-%m-%d %H:%M:%S}  {payload.type}  {payload.data.get('job_id') or ''}"
            console.print(printable_lines(what.rstrip()), soft_wrap=True)

    with _listener(host, port, take) as listener:
        where = url or f"http://{host}:{listener.port}/"
        with _receiver(where, event) as secret:
            listener.secret = secret
            say(f"listening at {where}; Ctrl-C stops it")
            listener.run(messages)


def _listener(host: str, port: int, take: Any) -> Listener:
    try:
        return Listener(host, port, take, refuse=lambda why: say(f"refused: {why}"))
    except OSError as error:
        raise LatheError(f"cannot listen on {host}:{port}: {error.strerror}", remedy="choose another --port") from error


@contextmanager
def _receiver(url: str, events: Any) -> Iterator[str]:
    """The secret of the receiver at an address: the one that is set, else of a new one, removed at the end."""
    if secret := os.environ.get("LATHE_WEBHOOK_SECRET"):
        yield secret
        return
    with connect() as client:
        endpoint = client.webhook_endpoints.create(url, events=events or None, description="lathe webhook listen")
        try:
            if endpoint.secret is None:
                raise WebhookVerificationError("the service made a receiver and told no secret")
            yield endpoint.secret
        finally:
            client.webhook_endpoints.delete(endpoint.id)
