"""The dashboard's answers: who may see what, what other sites cannot do, and that nothing hostile becomes markup."""

import re
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from fastapi.testclient import TestClient
from fixtures.waiting import until

from api import lifecycle
from api.dashboard import recipe_text, session
from api.main import create_app
from api.settings import Settings
from api.store import keys, webhooks
from api.store.session import Sessions
from optcore.errors import Failure, RecipeError
from optcore.events import Notice
from optcore.recipe import Recipe, recipe_from

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
OURS = {"Sec-Fetch-Site": "same-origin"}
ATTACK = "<script>alert(1)</script><img src=x onerror=alert(1)>\" ' {{ 7*7 }} javascript:alert(1)"
SignedIn = Callable[[str], TestClient]


@pytest.fixture
def anonymous(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), follow_redirects=False, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def signed_in(anonymous: TestClient, sessions: Sessions) -> SignedIn:
    def make(project_id: str) -> TestClient:
        with sessions.begin() as opened:
            _, key = keys.create(opened, project_id)
        client = TestClient(anonymous.app, follow_redirects=False, raise_server_exceptions=False)
        assert client.post("/sign-in", data={"key": f" {key}\n"}, headers=OURS).status_code == 303
        return client

    return make


@pytest.fixture
def reader(signed_in: SignedIn) -> TestClient:
    return signed_in("acme")


def test_a_session_is_sealed_strict_and_out_of_reach_of_scripts(anonymous: TestClient, sessions: Sessions) -> None:
    with sessions.begin() as opened:
        row, key = keys.create(opened, "acme")
    answer = anonymous.post("/sign-in", data={"key": key, "next": "/new"}, headers=OURS)
    assert (answer.status_code, answer.headers["location"]) == (303, "/new")
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict"} <= set(cookie.split("; "))
    assert key not in cookie
    assert anonymous.get("/").status_code == 200
    with sessions.begin() as opened:
        keys.revoke(opened, "acme", row.id)
    until(lambda: anonymous.get("/").status_code == 303)  # a revoked key ends its sessions


def test_a_session_ends(reader: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reader.get("/session").status_code == 204
    later = time.time() + session.LIFETIME_seconds + 1
    with monkeypatch.context() as patch:
        patch.setattr(session.time, "time", lambda: later)
        assert reader.get("/session").status_code == 303
    assert reader.post("/sign-out", headers=OURS).headers["location"] == "/sign-in"
    assert reader.get("/").headers["location"] == "/sign-in?next=/"
    for forged in ("forged", "forgéd"):
        reader.cookies.clear()
        cookie = f"{session.cookie_name(settings)}={forged}".encode("latin-1")
        assert reader.get("/", headers={"cookie": cookie}).status_code == 303


def test_the_cookie_is_no_key_to_the_api(reader: TestClient, job_id: str) -> None:
    assert reader.get("/v1/jobs").status_code == 401
    assert reader.post(f"/v1/jobs/{job_id}/cancel", headers=OURS).status_code == 401


ELSEWHERE = ["//evil.example", "https://evil.example", "/\\evil.example", "/jobs/../x", "/v1/jobs"]


@pytest.mark.parametrize("next", ELSEWHERE)
def test_signing_in_leads_to_our_own_pages_only(anonymous: TestClient, sessions: Sessions, next: str) -> None:
    with sessions.begin() as opened:
        _, key = keys.create(opened, "acme")
    assert anonymous.post("/sign-in", data={"key": key, "next": next}, headers=OURS).headers["location"] == "/"


def test_a_wrong_key_is_told_so(anonymous: TestClient) -> None:
    answer = anonymous.post("/sign-in", data={"key": "lk_wrong"}, headers=OURS)
    assert answer.status_code == 401
    assert "The API key is not known" in answer.text
    assert "set-cookie" not in answer.headers


FOREIGN: list[dict[str, str]] = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "none"},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {},
]


@pytest.mark.parametrize("headers", FOREIGN)
def test_another_site_changes_nothing(reader: TestClient, job_id: str, headers: dict[str, str]) -> None:
    for path in (f"/jobs/{job_id}/cancel", "/new", "/sign-out", "/sign-in"):
        answer = reader.post(path, data={"key": "x", "recipe": "x"}, headers=headers)
        assert (path, answer.status_code) == (path, 403)
    assert "queued" in reader.get(f"/jobs/{job_id}").text


def test_a_browser_that_only_sends_its_origin_may_cancel(reader: TestClient, job_id: str) -> None:
    answer = reader.post(f"/jobs/{job_id}/cancel", headers={"Origin": "http://testserver"})
    assert (answer.status_code, answer.headers["location"]) == (303, f"/jobs/{job_id}")
    assert "cancelled" in reader.get(f"/jobs/{job_id}").text


def test_another_tenants_job_is_not_there(signed_in: SignedIn, job_id: str) -> None:
    stranger = signed_in("other")
    for path in ("", "/live", "/report", "/recipe.yaml", "/artifacts/report.json"):
        answer = stranger.get(f"/jobs/{job_id}{path}")
        assert (path, answer.status_code) == (path, 404)
        assert answer.headers["content-type"].startswith("text/html")
    assert stranger.post(f"/jobs/{job_id}/cancel", headers=OURS).status_code == 404
    assert stranger.get(f"/new?like={job_id}").status_code == 404
    assert job_id not in stranger.get("/").text
    assert stranger.get(f"/?after={job_id}").status_code == 400


def test_every_page_forbids_foreign_code(reader: TestClient, job_id: str) -> None:
    for path in ("/", "/new", f"/jobs/{job_id}", "/sign-in", "/jobs/nothing"):
        answer = reader.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert "unsafe" not in policy
        assert answer.headers["cache-control"] == "no-store"
        assert not re.search(r"<script(?![^>]*\bsrc=)|\sstyle=|\son\w+=|https?://", answer.text)


def test_hostile_words_stay_words(reader: TestClient, sessions: Sessions, document: dict[str, Any]) -> None:
    hostile = recipe_from({**document, "name": ATTACK, "metadata": {ATTACK: ATTACK}})
    with sessions.begin() as opened:
        job_id = lifecycle.submit(opened, "acme", hostile).id
        claim = lifecycle.claim(opened, job_id, ATTACK)
        assert claim is not None
        lifecycle.record(opened, claim, [Notice(stage=ATTACK, message=ATTACK)])
        failure = Failure(kind="internal", code=ATTACK, message=ATTACK, remedy=ATTACK, field=ATTACK, stage=ATTACK)
        lifecycle.fail(opened, claim, failure)
    for path in ("/", f"/jobs/{job_id}", f"/new?like={job_id}"):
        text = reader.get(path).text
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert "{{ 7*7 }}" in text


def test_the_list_pages_and_filters(reader: TestClient, sessions: Sessions, recipe: Recipe) -> None:
    with sessions.begin() as opened:
        ids = [lifecycle.submit(opened, "acme", recipe).id for _ in range(23)]
        lifecycle.request_cancel(opened, "acme", ids[0])

    def shown(path: str) -> list[str]:
        return re.findall(r'<tr id="(job_\w+)"', reader.get(path).text)

    assert shown("/") == ids[:2:-1]
    link = re.search(r'rel="next" href="([^"]+)"', reader.get("/").text)
    assert link is not None
    assert shown(link.group(1).replace("&amp;", "&")) == ids[2::-1]
    assert shown("/?show=cancelled") == [ids[0]]
    assert shown("/?show=failed") == []
    part = reader.get("/", headers={"HX-Request": "true"}).text
    assert "<html" not in part
    assert ids[-1] in part
    assert reader.get("/?show=nonsense").status_code == 400


def test_a_script_without_a_session_is_sent_to_sign_in(anonymous: TestClient) -> None:
    answer = anonymous.get("/", headers={"HX-Request": "true"})
    assert (answer.status_code, answer.headers["hx-redirect"]) == (401, "/sign-in")


def test_a_form_sent_twice_is_one_job(reader: TestClient, document: dict[str, Any]) -> None:
    once = re.search(r'name="once" value="([^"]+)"', reader.get("/new").text)
    assert once is not None
    fields = {"recipe": yaml.safe_dump(document), "once": once.group(1)}
    first, second = (reader.post("/new", data=fields, headers=OURS) for _ in range(2))
    assert first.status_code == second.status_code == 303
    assert first.headers["location"] == second.headers["location"]
    other = reader.post("/new", data={**fields, "recipe": yaml.safe_dump({**document, "seed": 1})}, headers=OURS)
    assert other.headers["location"] != first.headers["location"]


BAD = """\
model: {id: org/model}
calibration:
  samples: -1
chain:
  - technique: ptq
    scheme: nvfp5
"""


def test_what_to_correct_is_told_at_its_line(reader: TestClient) -> None:
    answer = reader.post("/new", data={"recipe": BAD}, headers=OURS)
    assert answer.status_code == 422
    assert "2 things to correct" in answer.text
    assert re.findall(r'data-line="(\d+)"', answer.text) == ["3", "6"]
    assert "<code>/calibration/samples</code>" in answer.text
    assert "scheme: nvfp5" in answer.text, "what was typed is still there"


LOCAL = "model: {path: /etc}\nchain: [{technique: ptq, scheme: fp8}]"
BOMB = "a: &a [x, x]\nb: &b [*a, *a]\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: [", "not valid YAML"),
        (BOMB, "aliases are not allowed here"),
        ("[" * 3000, "to correct"),
        ("just words", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
        ("name: 2001-99-99", "not a recipe"),
        ('name: "\\0"', "NUL character"),
        ('name: "\\ud800"', "to correct"),
        (f"seed: {'9' * 5000}", "to correct"),
        ("? [a, b]\n: 1", "to correct"),
        ("model: !!python/object:os.system {}", "not valid YAML"),
        (LOCAL, "outside the folders"),
    ],
)
def test_no_text_is_too_strange_to_be_answered(reader: TestClient, text: str, said: str) -> None:
    answer = reader.post("/new", data={"recipe": text}, headers=OURS)
    assert answer.status_code == 422
    assert re.search(said, answer.text)
    assert reader.get("/").text.count("<tr id=") == 0


def test_a_form_is_bounded_and_a_form(reader: TestClient, settings: Settings) -> None:
    huge = reader.post("/new", data={"recipe": "x" * (3 * settings.max_body_bytes)}, headers=OURS)
    assert huge.status_code == 413
    assert reader.post("/new", json={"recipe": "x"}, headers=OURS).status_code == 415
    form = {**OURS, "Content-Type": "application/x-www-form-urlencoded"}
    for body in (b"recipe=%ff", b"recipe=\xff", b"recipe=%00", b"&".join([b"a=1"] * 7000)):
        assert reader.post("/new", content=body, headers=form).status_code == 400
    assert reader.post("/sign-in", content=b"&".join([b"a=1"] * 20), headers=form).status_code == 400


def test_lines_are_found_in_documents_of_every_form() -> None:
    text = "{model: {id: a/b},\n chain: [{technique: ptq,\n  wrong: 1}]}"
    with pytest.raises(RecipeError) as caught:
        recipe_from(recipe_text.read(text))
    found = [(each.field, each.line) for each in recipe_text.complaints(caught.value, text)]
    assert ("/chain/0/wrong", 3) in found
    assert ("/chain/0/scheme", 2) in found, "a key that is missing is shown where it belongs"


class _Outline(HTMLParser):
    """Controls and what names them."""

    def __init__(self) -> None:
        super().__init__()
        self.fields: list[dict[str, str | None]] = []
        self.labelled: set[str | None] = set()
        self.ids: list[str | None] = []
        self.references: set[str] = set()
        self.nameless: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        for name in ("aria-labelledby", "aria-describedby"):
            self.references |= set((found.get(name) or "").split())
        if tag == "label":
            self.labelled.add(found.get("for"))
        if tag in {"input", "textarea", "select"} and found.get("type") != "hidden":
            self.fields.append(found)
        needs_name = tag in {"progress", "nav"} or (tag == "section" and "narrow" not in (found.get("class") or ""))
        if needs_name and not {"aria-label", "aria-labelledby"} & set(found):
            self.nameless.append(f"{tag} {found}")


def test_everything_has_a_name(reader: TestClient, held: lifecycle.Claim) -> None:
    pages = {path: reader.get(path).text for path in ("/", "/new", f"/jobs/{held.job_id}", "/sign-in")}
    pages["refused"] = reader.post("/new", data={"recipe": BAD}, headers=OURS).text
    for path, text in pages.items():
        outline = _Outline()
        outline.feed(text)
        assert [field for field in outline.fields if field.get("id") not in outline.labelled] == [], path
        assert outline.references <= set(outline.ids), path
        assert len(outline.ids) == len(set(outline.ids)), path
        assert outline.nameless == [], path
        assert text.count("<h1>") == 1, path
        assert '<html lang="en">' in text


def test_every_rule_of_the_style_sheet_is_closed_where_it_should_be() -> None:
    """A brace lost in a merge would put all that follows into a rule for phones, and no reader of CSS complains."""
    depth, style = 0, (ROOT / "api" / "dashboard" / "static" / "lathe.css").read_text()
    for number, line in enumerate(style.splitlines(), 1):
        assert depth == 0 or line.startswith((" ", "}")), f"line {number} is below a rule that was not closed"
        depth += line.count("{") - line.count("}")
    assert depth == 0


def test_assets_are_ours_and_the_list_of_foreign_ones_is_right(anonymous: TestClient) -> None:
    import hashlib

    vendor = ROOT / "api" / "dashboard" / "static" / "vendor"
    told = (vendor / "README.md").read_text()
    for file in vendor.glob("*.min.*"):
        assert hashlib.sha256(file.read_bytes()).hexdigest() in told, file.name
    for path in re.findall(r'(?:src|href)="(/static/[^"]+)"', anonymous.get("/sign-in").text):
        assert anonymous.get(urlsplit(path).path).status_code == 200
    assert anonymous.get("/static/../session.py").status_code == 404
    assert anonymous.get("/static/%2e%2e/session.py").status_code == 404


def test_a_receiver_that_was_disabled_is_told_of_and_one_that_its_owner_disabled_is_not(
    reader: TestClient, sessions: Sessions, settings: Settings, signed_in: SignedIn
) -> None:
    with sessions.begin() as opened:
        made = [
            webhooks.create_endpoint(opened, settings.vault, "acme", "https://hooks.example/token", ["job.failed"])[
                0
            ].id
            for _ in range(2)
        ]
        webhooks.disable_endpoint(opened, made[0], "gone")
        webhooks.disable_endpoint(opened, made[1], "owner")
    shown = reader.get("/").text
    assert f"{made[0]}</code> is disabled: it answered that it is gone for good" in shown
    assert made[1] not in shown
    assert "hooks.example" not in shown, "a key that may see jobs need not know where messages go"
    assert "is disabled" not in signed_in("other").get("/").text
