"""A real HTTP server on loopback that answers as a test says, so that it can also fail on demand."""

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Answer = Callable[["Handler"], None]


@dataclass
class Script:
    """Answers by `METHOD /path`, each used once and in order; the last one stays."""

    answers: dict[str, list[Answer]] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    asked: list[tuple[str, dict[str, list[str]]]] = field(default_factory=list)
    url: str = ""

    def on(self, what: str, *answers: Answer) -> "Script":
        self.answers[what] = list(answers)
        return self

    def sent(self, what: str) -> list[dict[str, str]]:
        """The headers of each request that came, names in lower case."""
        return [headers for method, path, headers, _ in self.requests if f"{method} {path}" == what]

    def queries(self, what: str) -> list[dict[str, list[str]]]:
        """The query of each request that came."""
        return [query for place, query in self.asked if place == what]

    def next_answer(self, what: str) -> Answer:
        listed = self.answers.get(what, [status(404)])
        return listed.pop(0) if len(listed) > 1 else listed[0]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    script: Script

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        self.script.asked.append((f"{self.command} {path}", query))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.script.requests.append((self.command, path, headers, body))
        self.script.next_answer(f"{self.command} {path}")(self)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _any

    def log_message(self, *_: object) -> None:
        pass


def status(code: int, document: Any = None, **headers: str) -> Answer:
    """A whole answer; a dict or list becomes JSON, bytes go as they are."""

    def answer(handler: Handler) -> None:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def problem(code: int, name: str, **headers: str) -> Answer:
    """A problem document."""
    document = {"type": f"http://x/{name}", "title": "T", "status": code, "detail": f"detail of {name}", "code": name}
    return status(code, document, **headers)


def cut(handler: Handler) -> None:
    """Reset the connection instead of answering."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.close()


def cut_after(body: bytes, *, code: int = 200, length: int | None = None, kind: str = "text/event-stream") -> Answer:
    """Send some bytes of a longer answer, then end the connection."""

    def answer(handler: Handler) -> None:
        handler.send_response(code)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(length or len(body) + 1000))
        handler.end_headers()
        handler.wfile.write(body)
        handler.wfile.flush()
        handler.close_connection = True

    return answer


@contextmanager
def scripted() -> Iterator[Script]:
    """A server with an empty script."""
    script = Script()
    kind = type("Scripted", (Handler,), {"script": script})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    server.handle_error = lambda *_: None  # a connection that a test cut
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield script
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def job_document(**changes: Any) -> dict[str, Any]:
    """A job as the service answers it."""
    recipe = {"model": {"path": "m"}, "chain": [{"technique": "ptq", "scheme": "fp8"}]}
    whole = {
        "id": "job_1",
        "object": "job",
        "name": None,
        "status": "running",
        "recipe": recipe,
        "resolved": None,
        "attempt": 1,
        "stages": [],
        "failure": None,
        "artifact_digest": None,
        "publish": {"status": "not_requested"},
        "metadata": {},
        "created_at": "2026-01-01T00:00:00Z",
        "started_at": None,
        "finished_at": None,
    } | changes
    return {**whole, "is_terminal": whole["status"] in ("succeeded", "failed", "cancelled")}


def page(*data: Any, has_more: bool = False, last_id: str | None = None) -> dict[str, Any]:
    """A page of a list."""
    return {"object": "list", "data": list(data), "has_more": has_more, "first_id": None, "last_id": last_id}
