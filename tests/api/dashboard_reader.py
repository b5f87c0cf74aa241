"""Readers of the dashboard, signed in with a key; and what a program sees of a page."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html.parser import HTMLParser

from fastapi.testclient import TestClient

from api.main import create_app
from api.settings import Settings
from api.store import keys
from api.store.session import Sessions
from lathe.models import SCOPES, Scope

OURS = {"Sec-Fetch-Site": "same-origin"}
FOREIGN: list[dict[str, str]] = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "none"},
    {"Origin": "http://evil.example"},
    {"Origin": "http://testserver.evil.example"},
    {"Origin": "null"},
    {},
]
"""Headers of requests that another site made in the reader's name."""
ATTACK = "<script>alert(1)</script><img src=x onerror=alert(1)>\" ' {{ 7*7 }} javascript:alert(1)"


@contextmanager
def dashboard(settings: Settings) -> Iterator[TestClient]:
    """The application, with nobody signed in."""
    with TestClient(create_app(settings), follow_redirects=False, raise_server_exceptions=False) as client:
        yield client


def signed_in(
    anonymous: TestClient, sessions: Sessions, project_id: str = "acme", scopes: Sequence[Scope] = SCOPES
) -> TestClient:
    """A browser of its own, with a session of a new key. Like a browser it says where its forms come from."""
    with sessions.begin() as session:
        _, key = keys.create(session, project_id, scopes=scopes)
    client = TestClient(anonymous.app, follow_redirects=False, raise_server_exceptions=False, headers=OURS)
    client.portal = anonymous.portal
    assert client.post("/sign-in", data={"key": key}).status_code == 303
    return client


def assert_harmless(text: str) -> None:
    """Nobody's words became markup: no code or style stands in the page, and no link runs any."""
    outline = _Outline()
    outline.feed(text)
    assert outline.live == []


def assert_named(text: str) -> None:
    """Every control has a label, every landmark a name; ids are there once, and references lead somewhere."""
    outline = _Outline()
    outline.feed(text)
    assert [field for field in outline.fields if field.get("id") not in outline.labelled] == []
    assert outline.references <= set(outline.ids)
    assert sorted(outline.ids) == sorted(set(outline.ids))
    assert outline.nameless == []
    assert len(re.findall(r"<h1[ >]", text)) == 1


class _Outline(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.fields: list[dict[str, str | None]] = []
        self.labelled: set[str | None] = set()
        self.ids: list[str] = []
        self.references: set[str] = set()
        self.nameless: list[str] = []
        self.live: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "script" and not (found.get("src") or "").startswith("/static/"):
            self.live.append(tag)
        if tag == "img" and found.get("src") != "/static/icon.svg":
            self.live.append(tag)
        for name, value in attrs:
            leads = name in {"href", "src", "action", "formaction"} and not re.match(r"/(?!/)|#", value or "")
            if name.startswith("on") or name == "style" or leads:
                self.live.append(f"{tag} {name}={value}")
        if found.get("id"):
            self.ids.append(str(found["id"]))
        for name in ("aria-labelledby", "aria-describedby"):
            self.references |= set((found.get(name) or "").split())
        if tag == "label":
            self.labelled.add(found.get("for"))
        if tag in {"input", "textarea", "select"} and found.get("type") != "hidden":
            self.fields.append(found)
        if tag in {"progress", "nav", "section"} and not {"aria-label", "aria-labelledby"} & set(found):
            self.nameless.append(f"{tag} {found}")
