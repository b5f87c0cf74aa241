"""The browser that the dashboard's tests stand on."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from fixtures.browser import find_chromium
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.integration

HTML = (
    b"<!doctype html><title>t</title><p id=p>old</p><script>document.getElementById('p').textContent='turned'</script>"
)


class _Site(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(HTML)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_page_runs_its_script_and_is_drawn_with_fonts(browser_page: Page, tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Site) as site:
        Thread(target=site.serve_forever, daemon=True).start()
        browser_page.goto(f"http://127.0.0.1:{site.server_port}/")
        expect(browser_page.locator("#p")).to_have_text("turned")
        assert browser_page.inner_text("#p") == "turned"  # empty when the browser finds no font
        shot = browser_page.screenshot(path=tmp_path / "page.png")
        site.shutdown()
    assert shot.startswith(b"\x89PNG")
    assert len(shot) > 1000


def test_a_wished_browser_is_never_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LATHE_CHROMIUM", str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError, match="absent"):
        find_chromium()
