"""The list of jobs: filters, pages both ways, what is asked again, and the frame around it."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from dashboard_reader import ATTACK, FOREIGN, OURS, assert_harmless, assert_named, dashboard, signed_in
from fastapi.testclient import TestClient

from api import lifecycle
from api.dashboard.frame import own_page
from api.dashboard.job_filter import JobFilter
from api.settings import Settings
from api.store import keys
from api.store.session import Sessions
from optcore.recipe import Recipe, recipe_from

pytestmark = pytest.mark.integration


@pytest.fixture
def anonymous(settings: Settings) -> Iterator[TestClient]:
    with dashboard(settings) as client:
        yield client


@pytest.fixture
def reader(anonymous: TestClient, sessions: Sessions) -> TestClient:
    return signed_in(anonymous, sessions)


def shown(reader: TestClient, address: str) -> list[str]:
    answer = reader.get(address)
    assert answer.status_code == 200, answer.text
    return re.findall(r'<tr id="(job_\w+)"', answer.text)


def link(text: str, rel: str) -> str | None:
    found = re.search(rf'rel="{rel}" href="([^"]+)"', text)
    return found and found.group(1).replace("&amp;", "&")


def test_each_filter_of_the_form_narrows_the_list(
    reader: TestClient, sessions: Sessions, document: dict[str, Any]
) -> None:
    pruned = {**document, "name": "Quick one", "metadata": {"team": "vision"}, "model": {"id": "org/other"}}
    pruned["chain"] = [*document["chain"], {"technique": "qad", "steps": 5}]
    with sessions.begin() as session:
        fast = lifecycle.submit(session, "acme", recipe_from(document)).id
        quick = lifecycle.submit(session, "acme", recipe_from(pruned)).id
        lifecycle.submit(session, "other", recipe_from(pruned))
        lifecycle.request_cancel(session, "acme", quick)
    today, past = datetime.now(UTC).date(), datetime.now(UTC).date() - timedelta(days=3)
    for query, expected in {
        "": [quick, fast],
        "name=QUICK": [quick],
        "name=%25": [],
        "technique=qad": [quick],
        "model=org/other": [quick],
        "label=team=vision": [quick],
        "label=team%3Dnlp&name=&technique=&model=&since=&until=": [fast],
        f"since={today}": [quick, fast],
        f"until={past}": [],
        f"since={past}&until={today}&order=oldest": [fast, quick],
        "show=active&name=f": [fast],
        "show=active&name=quick": [],
        f"only={fast}&only=nonsense": [fast],
    }.items():
        assert shown(reader, f"/?{query}") == expected, query


def test_words_that_mean_nothing_are_told_in_place(reader: TestClient, job_id: str) -> None:
    for query in ("label=team", "label==x", "since=tomorrow", "until=9999-12-31", "since=0000-00-00"):
        answer = reader.get(f"/?{query}", headers={"HX-Request": "true"})
        assert answer.status_code == 200, query
        assert 'role="alert"' in answer.text, query
        assert job_id not in answer.text, query


def test_an_address_that_cannot_be_read_is_a_page_that_says_so(reader: TestClient) -> None:
    for query in ("show=x", "order=x", "name=%00", f"name={'x' * 501}", "after=x", f"only={'x' * 65}"):
        assert reader.get(f"/?{query}").status_code == 400, query


def test_pages_lead_both_ways_and_keep_the_filter(reader: TestClient, sessions: Sessions, recipe: Recipe) -> None:
    with sessions.begin() as session:
        ids = [lifecycle.submit(session, "acme", recipe).id for _ in range(45)][::-1]
    first = reader.get("/?name=fast")
    second = reader.get(link(first.text, "next") or "")
    third = reader.get(link(second.text, "next") or "")
    assert link(first.text, "prev") is None
    assert link(third.text, "next") is None
    assert "name=fast" in (link(second.text, "next") or "")
    assert shown(reader, str(third.request.url)) == ids[40:]
    back = link(third.text, "prev") or ""
    assert shown(reader, back) == ids[20:40]
    assert shown(reader, link(reader.get(back).text, "prev") or "") == ids[:20], "a whole first page"
    oldest = reader.get("/?order=oldest")
    assert shown(reader, link(oldest.text, "next") or "") == ids[::-1][20:40]


def test_a_list_that_is_dear_to_make_is_not_made_again(reader: TestClient, job_id: str, sessions: Sessions) -> None:
    """New jobs appear where an index answers; elsewhere rows alone are asked for, and nothing once they are over."""

    def asked_again(address: str) -> tuple[str, str] | None:
        found = re.search(r'data-poll [^>]*hx-get="([^"]+)"[^>]*hx-target="([^"]+)"', reader.get(address).text)
        return found and (found.group(1).replace("&amp;", "&"), found.group(2))

    assert asked_again("/") == ("/", "#jobs")
    assert asked_again("/?show=active") == ("/?show=active", "#jobs")
    again, target = asked_again("/?name=fast") or ("", "")
    assert (target, shown(reader, again)) == ("#rows", [job_id])
    assert reader.get(again, headers={"HX-Request": "true"}).text.lstrip().startswith("<tr")
    with sessions.begin() as session:
        lifecycle.request_cancel(session, "acme", job_id)
    assert asked_again("/?name=fast") is None
    assert asked_again("/?name=none") is None


def test_hostile_words_in_the_address_stay_words(reader: TestClient, job_id: str) -> None:
    for field in ("name", "technique", "model", "label", "since"):
        for partial in ({}, {"HX-Request": "true"}):
            assert_harmless(reader.get("/", params={field: ATTACK}, headers=partial).text)
    assert_named(reader.get("/").text)


def test_the_address_of_a_list_says_what_was_asked() -> None:
    asked = JobFilter(name="a&b", order="oldest", after="job_x")
    assert asked.address() == "/?name=a%26b&order=oldest"
    assert asked.address(show="failed") == "/?show=failed&name=a%26b&order=oldest"
    assert JobFilter().address(only=["a", "b"]) == "/?only=a&only=b"


def test_the_navigation_marks_where_the_reader_is(reader: TestClient, job_id: str) -> None:
    marks = {
        path: re.findall(r'<a href="([^"]+)" aria-current="(\w+)">', reader.get(path).text.partition("</header>")[0])
        for path in ("/", "/new", f"/jobs/{job_id}", "/compare", "/workers", "/settings", "/settings/keys")
    }
    assert marks == {
        "/": [("/", "page")],
        "/new": [("/new", "page")],
        f"/jobs/{job_id}": [("/", "true")],
        "/compare": [("/compare", "page")],
        "/workers": [("/workers", "page")],
        "/settings": [("/settings", "page")],
        "/settings/keys": [("/settings", "true")],
    }


def test_a_theme_is_in_the_first_answer(anonymous: TestClient) -> None:
    assert "data-theme" not in anonymous.get("/sign-in").text
    for headers in FOREIGN:
        assert anonymous.post("/theme", data={"theme": "dark"}, headers=headers).status_code == 403
    answer = anonymous.post("/theme", data={"theme": "dark", "back": "/workers"}, headers=OURS)
    assert (answer.status_code, answer.headers["location"]) == (303, "/workers")
    assert '<html lang="en" data-theme="dark">' in anonymous.get("/sign-in").text
    assert anonymous.post("/theme", data={"theme": "x"}, headers=OURS).status_code == 400
    anonymous.cookies.clear()
    hostile = {"cookie": 'lathe_theme="><script>'}
    assert "data-theme" not in anonymous.get("/sign-in", headers=hostile).text


JOB = "job_" + "0" * 26


@pytest.mark.parametrize(
    ("address", "leads_to"),
    [
        (f"/compare?job={JOB}&job={JOB}", f"/compare?job={JOB}&job={JOB}"),
        ("/settings/webhooks/whe_" + "0" * 26, "/settings/webhooks/whe_" + "0" * 26),
        ("/settings/audit", "/settings/audit"),
        ("//evil.example", "/"),
        ("/settings//evil.example", "/"),
        ("/compare?job=//evil.example", "/"),
        ("/settings\\evil", "/"),
        ("/theme", "/"),
        ("/v1/jobs", "/"),
        ("/settings\n", "/"),
    ],
)
def test_back_leads_to_our_own_pages_alone(address: str, leads_to: str) -> None:
    assert own_page(address) == leads_to


def test_a_page_asks_who_is_not_signed_in_and_leads_back(anonymous: TestClient) -> None:
    answer = anonymous.get(f"/compare?job={JOB}")
    assert answer.headers["location"] == f"/sign-in?next=/compare%3Fjob%3D{JOB}"
    assert f'name="next" value="/compare?job={JOB}"' in anonymous.get(answer.headers["location"]).text


def test_failed_sign_ins_are_limited_and_successful_ones_are_not(settings: Settings, sessions: Sessions) -> None:
    few = settings.model_copy(update={"sign_in_rate_limit": "3/minute"})
    with sessions.begin() as session:
        _, key = keys.create(session, "acme")
    with dashboard(few) as browser:
        for _ in range(5):
            assert browser.post("/sign-in", data={"key": key}, headers=OURS).status_code == 303
        told = [browser.post("/sign-in", data={"key": "lk_guess"}, headers=OURS).status_code for _ in range(4)]
        assert told == [401, 401, 401, 429]
        refused = browser.post("/sign-in", data={"key": "lk_guess"}, headers=OURS)
        assert 0 < int(refused.headers["retry-after"]) <= 60
        assert re.search(r"Try again in \d+ seconds", refused.text)
        assert "set-cookie" not in refused.headers
        right = browser.post("/sign-in", data={"key": key}, headers=OURS)
        assert right.status_code == 303, "who failed from the same network keeps nobody out"


def test_a_network_of_version_6_counts_as_one(settings: Settings) -> None:
    few = settings.model_copy(update={"sign_in_rate_limit": "2/minute"})
    with dashboard(few) as browser:
        told = [
            TestClient(browser.app, client=(address, 1)).post("/sign-in", data={"key": "lk_guess"}, headers=OURS)
            for address in ("2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8:0:1::1", "192.0.2.1", "testclient")
        ]
    assert [answer.status_code for answer in told] == [401, 401, 429, 401, 401, 401]


def test_over_tls_the_session_is_this_hosts_alone(settings: Settings, sessions: Sessions) -> None:
    with sessions.begin() as session:
        _, key = keys.create(session, "acme")
    with dashboard(settings) as browser:
        browser.base_url = "https://testserver"  # type: ignore[assignment]  # the client takes a text
        cookie = browser.post("/sign-in", data={"key": key}, headers=OURS).headers["set-cookie"]
        assert cookie.startswith("__Host-lathe_")
        assert {"Secure", "HttpOnly", "Path=/", "SameSite=strict"} <= set(cookie.split("; "))
        assert "domain" not in cookie.lower()
        assert browser.get("/session").status_code == 204
        tossed = cookie.partition(";")[0].removeprefix("__Host-")  # what a neighbour below the same domain could set
        browser.cookies.clear()
        assert browser.get("/session", headers={"cookie": tossed}).status_code == 303
        for origin, status in (("http://testserver", 403), ("https://testserver", 303)):
            assert browser.post("/sign-out", headers={"Origin": origin}).status_code == status, origin
