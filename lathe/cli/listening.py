"""A receiver of webhooks in the terminal: takes messages by HTTP, checks them, hands them on."""

from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer

from lathe.errors import WebhookVerificationError
from lathe.webhook_models import WebhookPayload
from lathe.webhooks import unwrap

MAX_BODY_bytes = 64 * 1024
"""Three times what the standard lets a message be."""
SILENCE_seconds = 10.0
Take = Callable[[str, WebhookPayload], None]


class Listener:
    """Listens from the moment it is made; one message after the other. Use as a context."""

    def __init__(self, host: str, port: int, take: Take, refuse: Callable[[str], None]) -> None:
        self.secret = ""
        """Messages are refused until it is known."""
        self.taken: set[str] = set()
        """Ids of messages: a delivery may be repeated, and is answered and not handed on again."""
        handler = type("Handler", (_Handler,), {"listener": self})
        self._server = HTTPServer((host, port), handler)
        self._take, self.refuse = take, refuse
        self.port = self._server.server_port

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.server_close()

    def run(self, messages: int | None = None) -> None:
        """Until so many messages have come; for ever when None."""
        while messages is None or len(self.taken) < messages:
            self._server.handle_request()

    def receive(self, body: bytes, headers: dict[str, str]) -> None:
        """Hand on a message that is new. Raises `WebhookVerificationError`."""
        payload = unwrap(body, headers, self.secret)
        message_id = headers["webhook-id"]
        if message_id not in self.taken:
            self._take(message_id, payload)
            self.taken.add(message_id)


class _Handler(BaseHTTPRequestHandler):
    timeout = SILENCE_seconds
    listener: Listener

    def do_POST(self) -> None:
        length = self.headers.get("content-length", "")
        if not length.isdecimal() or int(length) > MAX_BODY_bytes:
            return self._answer(411 if not length.isdecimal() else 413)
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            self.listener.receive(self.rfile.read(int(length)), headers)
        except WebhookVerificationError as error:
            self.listener.refuse(error.message)
            return self._answer(400)
        return self._answer(204)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing: what is worth a word is handed on."""
