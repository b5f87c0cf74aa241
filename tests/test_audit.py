"""`python -m audit`: pip-audit itself, asked about what is installed here, answered by a peer of osv.dev."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from audit.__main__ import main, tell


class Osv(ThreadingHTTPServer):
    """Knows one advisory of every version of the packages in `bad`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Query)
        self.bad: set[str] = set()
        self.asked: dict[str, str] = {}
        self.url = f"http://127.0.0.1:{self.server_port}/v1/query"


class _Query(BaseHTTPRequestHandler):
    server: Osv

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = query["package"]["name"]
        self.server.asked[name] = query["version"]
        answer = json.dumps({"vulns": [_advisory(name)]} if name in self.server.bad else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _advisory(name: str) -> dict[str, Any]:
    ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "999"}]}]
    affected = [{"package": {"name": name, "ecosystem": "PyPI"}, "ranges": ranges}]
    return {"id": "PYSEC-2099-1", "modified": "2099-01-01T00:00:00Z", "summary": "bad", "affected": affected}


@pytest.fixture
def osv() -> Iterator[Osv]:
    with Osv() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_what_is_installed_is_asked_about_and_found(osv: Osv, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--osv-url", osv.url]) == 0
    assert f"{len(osv.asked)} packages audited, 0 not, 0 known vulnerabilities" in capsys.readouterr().out
    assert {"fastapi", "cryptography", "torch"} <= osv.asked.keys()
    assert "lathe" not in osv.asked
    assert not [version for version in osv.asked.values() if "+" in version]
    osv.bad = {"cryptography"}
    assert main(["--osv-url", osv.url]) == 1
    assert f"cryptography {osv.asked['cryptography']}: PYSEC-2099-1: fixed in 999\n" in capsys.readouterr().out


def test_an_audit_that_could_not_be_made_is_no_clean_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--osv-url", "http://127.0.0.1:9/v1/query"]) == 3
    assert "NOT AUDITED" in capsys.readouterr().out
    known = {"name": "a", "version": "1", "vulns": []}
    assert tell([known, {"name": "b", "skip_reason": "not found"}]) == 3
