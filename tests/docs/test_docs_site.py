"""The site of the documentation: built strictly, complete, and asking no other host for anything, in real Chromium."""

import functools
import http.server
import re
import shutil
import threading
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fixtures.doc_blocks import ROOT

from docs import site

if TYPE_CHECKING:
    from playwright.sync_api import Page

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}
"""What a browser fetches by itself, and where the address stands."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built from a copy of what it is made of."""
    root = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", root / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / site.CONFIG, root)
    for package in ("lathe", "optcore"):
        (root / package).symlink_to(ROOT / package)
    site.build(root)
    return root / _config()["site_dir"]


@pytest.fixture(scope="module")
def address(built: Path) -> Iterator[str]:
    """The site on a port of this machine."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=built)) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


def test_every_page_is_built_and_named_in_the_navigation(built: Path) -> None:
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert set(_named(_config()["nav"])) == written
    folders = {re.sub(r"(README)?\.md$", "", name).rstrip("/") for name in written}
    assert [name for name in folders if not (built / name / "index.html").exists()] == []
    assert list(built.rglob("*.py")) == []


@pytest.mark.parametrize("link", ["nowhere.md", "README.md#nowhere"])
def test_a_link_that_leads_nowhere_ends_the_build(link: str, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "README.md").write_text(f"# Here\n\n[there]({link})\n")
    (tmp_path / site.CONFIG).write_text('[project]\nsite_name = "x"\n')
    with pytest.raises(site.SiteError, match="does not exist"):
        site.build(tmp_path)


def test_the_pages_load_nothing_from_another_host(built: Path) -> None:
    documents = list(built.rglob("*.html"))
    assert len(documents) > 60
    foreign = {found for path in documents for found in _Loaded.of(path) if re.match(r"(?i)(https?:)?//", found)}
    assert foreign == set()
    sheets = "".join(path.read_text(encoding="utf-8") for path in built.rglob("*.css"))
    assert re.findall(r"""@import|url\(\s*["']?(?:https?:)?//[^)]*""", sheets) == []


def test_the_reference_of_the_sdk_has_what_is_public(built: Path) -> None:
    import lathe

    page = (built / "sdk" / "index.html").read_text(encoding="utf-8")
    objects = set(re.findall(r'id="([\w.]+)"', page))
    homes = {getattr(lathe, name).__module__ for name in lathe.__all__}
    named = {name for name in lathe.__all__ if any(f"{home}.{name}" in objects for home in homes)}
    assert set(lathe.__all__) - named == {"Failure", "Recipe", "RecipeError"}, "the engine's, in pages of their own"
    assert {f"lathe._jobs.Jobs.{name}" for name in ("create", "wait", "result", "events", "cancel")} <= objects


def test_a_reader_finds_turns_dark_and_asks_nobody_else(address: str, browser_page: "Page") -> None:
    asked: list[str] = []
    browser_page.on("request", lambda request: asked.append(request.url))
    browser_page.emulate_media(color_scheme="light")
    for page in ("architecture/", "sdk/", "techniques/qad/", ""):
        browser_page.goto(f"{address}/{page}", wait_until="networkidle")
    body = browser_page.locator("body")
    assert body.get_attribute("data-md-color-scheme") == "default"
    browser_page.emulate_media(color_scheme="dark")
    browser_page.wait_for_function("document.body.dataset.mdColorScheme === 'slate'")
    browser_page.keyboard.press("Control+k")
    browser_page.keyboard.type("knapsack")
    browser_page.locator('a[href*="techniques/puzzle"]:visible').first.wait_for()
    assert {url.split("/")[2] for url in asked} == {address.split("/")[2]}


class _Loaded(HTMLParser):
    """Addresses that a page makes a browser fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    @classmethod
    def of(cls, path: Path) -> list[str]:
        parser = cls()
        parser.feed(path.read_text(encoding="utf-8"))
        return parser.found

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in LOADED and values.get("rel") not in ("canonical", "next", "prev"):
            self.found += [value for value in (values.get(LOADED[tag]), values.get("srcset")) if value]


def _config() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / site.CONFIG).read_text(encoding="utf-8"))["project"]
    return found


def _named(entries: Any) -> Iterator[str]:
    if isinstance(entries, str):
        yield entries
    else:
        for entry in entries.values() if isinstance(entries, dict) else entries:
            yield from _named(entry)
