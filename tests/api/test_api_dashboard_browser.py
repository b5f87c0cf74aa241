"""The dashboard in a real browser, over a real server and database."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from dashboard_service import Service, report_of, serving
from fixtures.screenshot import take_with

from api import lifecycle
from api.settings import Settings
from api.store import jobs
from api.store.session import Sessions
from optcore.errors import Failure
from optcore.events import Metric, Notice, Progress, RecipeResolved, RunPlanned, StageFinished, StageStarted
from optcore.recipe import Recipe, recipe_from

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Page, Route

pytestmark = pytest.mark.integration

OWNER = "acme"
OWNED = "document.title='owned'"
ATTACK = f'<script>{OWNED}</script><img src=x onerror="{OWNED}">\r\revent: end\r{{{{ 7*7 }}}}'
PLAN = ("0-fetch", "1-ptq", "2-export", "3-evaluate")
STATUS = "server responded with a status of 4"
"""What a browser writes about any refusal; the tests look at those themselves."""


@pytest.fixture
def service(settings: Settings, sessions: Sessions) -> Iterator[Service]:
    with serving(settings, sessions) as running:
        yield running


@pytest.fixture
def page(browser_page: "Page", service: Service) -> Iterator["Page"]:
    """Signed in by the link that `lathe up` prints. What the browser complains about fails the test, above all its
    refusals to run or load something; and so does a request to anywhere else."""
    complaints: list[str] = []
    browser_page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    asked: list[str] = []
    browser_page.on("request", lambda request: asked.append(request.url))
    browser_page.goto(f"{service.url}/sign-in#key={service.key(OWNER)}")
    browser_page.wait_for_url(f"{service.url}/")
    yield browser_page
    assert [each for each in complaints if STATUS not in each] == []
    assert [url for url in asked if not url.startswith(service.url)] == []


def _expect(page: "Page", role: str, text: str) -> None:
    page.locator(role, has_text=re.compile(text)).first.wait_for(timeout=8000)


def test_a_job_goes_from_queued_to_succeeded_before_the_readers_eyes(
    page: "Page", browser: "Browser", service: Service, recipe: Recipe, tmp_path: Path
) -> None:
    job_id = service.submit(OWNER, recipe)
    page.goto(f"{service.url}/jobs/{job_id}")
    page.evaluate("window.sameDocument = true")
    _expect(page, "[role=status]", "queued Waiting for a worker".replace(" ", r"\s*"))

    claim = service.claim(job_id)
    service.record(claim, RunPlanned(stages=PLAN), StageStarted(stage="0-fetch", key="a"))
    _expect(page, "[role=status]", "Stage 1 of 4: 0-fetch")
    done = StageFinished(stage="0-fetch", key="a", cached=True, seconds=0.1, peak_memory_bytes=10**6)
    service.record(claim, done, StageStarted(stage="1-ptq", key="b"))
    service.record(claim, Progress(stage="1-ptq", phase="calibrating", done=3, total=12))
    page.locator("progress[aria-label='Progress of 1-ptq'][value='3'][max='12']").wait_for()
    _expect(page, "tr.cached", "found done, not run again")
    service.record(claim, Notice(stage="1-ptq", message="two layers were left alone"))
    _expect(page, "#feed li.notice", "two layers were left alone")
    take_with(browser, service.url, service.key(OWNER), job_id, tmp_path / "running.png")

    for stage in PLAN[1:]:
        ended = StageFinished(stage=stage, key="k", cached=False, seconds=2.5, peak_memory_bytes=2 * 10**9)
        service.record(claim, StageStarted(stage=stage, key="k"), ended, Metric(stage=stage, name="kl", value=0.03))
    assert page.get_by_role("heading", name="Before and after").count() == 0
    service.finish(claim, report_of(recipe), more=("model.safetensors", "deep/er/config.json"))
    _expect(page, "[role=status]", "Finished")
    row = page.get_by_role("row", name="Weights on disk")
    assert row.get_by_role("cell").all_inner_texts()[:3] == ["9.96 MB", "–", "3.4 MB"]  # noqa: RUF001
    assert page.locator(".plot canvas").count() == 1
    assert page.get_by_role("button", name="Cancel job").count() == 0
    assert page.evaluate("window.sameDocument"), "the page was never loaded again"
    numbers = [int(n or 0) for n in page.locator("#feed li").evaluate_all("all => all.map(e => e.dataset.seq)")]
    assert numbers == sorted(set(numbers), reverse=True), "each event once, newest first"

    with page.context.expect_page() as opened:
        page.get_by_role("link", name="Full report").click()
    assert opened.value.get_by_role("heading").inner_text() == "the report"
    page.get_by_role("link", name="Artifacts").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="deep/er/config.json").click()
    assert Path(download.value.path()).read_text() == "x" * 5000
    for width, dark in ((1200, False), (1200, True), (390, False)):
        picture = tmp_path / f"job-{width}-{'dark' if dark else 'light'}.png"
        take_with(browser, service.url, service.key(OWNER), job_id, picture, width=width, dark=dark)
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_script_that_comes_late_costs_no_news(page: "Page", service: Service, recipe: Recipe) -> None:
    claim = service.claim(service.submit(OWNER, recipe))
    held: list[Route] = []
    page.route("**/hx-sse.min.js", lambda route: held.append(route))
    page.goto(f"{service.url}/jobs/{claim.job_id}", wait_until="commit")
    started = "new Promise(done => window.htmx ? setTimeout(() => done(true), 50) : done(false))"
    page.wait_for_function(started, polling=20)
    held[0].continue_()
    page.wait_for_load_state()
    service.record(claim, RunPlanned(stages=PLAN), StageStarted(stage="0-fetch", key="a"))
    _expect(page, "[role=status]", "Stage 1 of 4")


def test_the_reader_cancels_a_running_job(page: "Page", service: Service, recipe: Recipe) -> None:
    claim = service.claim(service.submit(OWNER, recipe))
    service.record(claim, RunPlanned(stages=PLAN), StageStarted(stage="0-fetch", key="a"))
    page.goto(f"{service.url}/jobs/{claim.job_id}")
    button = page.get_by_role("button", name="Cancel job")
    asked: list[str] = []

    def think_better(dialog: "Dialog") -> None:
        asked.append(dialog.message)
        dialog.dismiss()

    page.once("dialog", think_better)
    button.click()
    assert asked[0].startswith("Cancel this job?")
    with service.sessions() as session:
        assert jobs.get(session, OWNER, claim.job_id).status == "running"
    page.once("dialog", lambda dialog: dialog.accept())
    button.click()
    _expect(page, "[role=status]", "cancelling")
    with service.sessions.begin() as session:
        assert lifecycle.renew(session, claim).cancel_requested
        lifecycle.cancelled(session, claim)
    _expect(page, "[role=status]", "Ended because its owner asked")
    assert page.locator("tr.cancelled").count() == len(PLAN)


def test_a_failure_says_what_where_and_what_to_do(page: "Page", service: Service, recipe: Recipe) -> None:
    claim = service.claim(service.submit(OWNER, recipe))
    page.goto(f"{service.url}/jobs/{claim.job_id}")
    said = {"message": "org/model is gated", "remedy": "accept its terms", "field": "/model/id"}
    with service.sessions.begin() as session:
        lifecycle.fail(session, claim, Failure(kind="user_error", code="source_gated", **said))
    card = page.get_by_role("alert")
    card.wait_for()
    assert [words for words in said.values() if words not in card.inner_text()] == []
    page.get_by_role("link", name="Correct and submit again").click()
    assert "id: org/model" in page.get_by_label("Recipe, as YAML").input_value()


def test_publishing_goes_on_after_the_job(page: "Page", service: Service, document: dict[str, Any]) -> None:
    wanted = recipe_from({**document, "publish": {"repo_id": "me/small"}})
    claim = service.claim(service.submit(OWNER, wanted))
    page.goto(f"{service.url}/jobs/{claim.job_id}")
    service.finish(claim, report_of(wanted))
    page.locator(".badge.pending").wait_for()
    with service.sessions.begin() as session:
        push = lifecycle.claim_publish(session, claim.job_id, "worker-2")
        assert push is not None
        lifecycle.publish_succeeded(session, push, "https://127.0.0.1:9/me/small", "c" * 40)
    page.locator(".badge.published").wait_for()
    assert page.get_by_role("link", name="Open on the Hub").get_attribute("href") == "https://127.0.0.1:9/me/small"


def test_hostile_words_do_nothing_live(page: "Page", service: Service, document: dict[str, Any]) -> None:
    hostile = recipe_from({**document, "name": ATTACK, "metadata": {ATTACK: ATTACK}})
    claim = service.claim(service.submit(OWNER, hostile))
    page.goto(f"{service.url}/jobs/{claim.job_id}")
    page.get_by_role("status").wait_for()
    pinned = RecipeResolved(recipe={**hostile.model_dump(mode="json"), "seed": 4711})
    service.record(claim, pinned, Notice(stage=ATTACK, message=ATTACK))
    _expect(page, "#feed li.notice", r"7\*7")
    page.goto(f"{service.url}/jobs/{claim.job_id}/recipe")
    _expect(page, "#recipe mark", "seed: 4711")
    service.finish(claim, report_of(hostile, ATTACK), more=("<img src=x onerror=alert(1)>.txt",))
    _expect(page, "[role=status]", "Finished")
    assert page.title() != "owned"
    page.get_by_role("link", name="Artifacts").click()
    page.get_by_role("link", name="<img src=x").wait_for()
    assert page.title() != "owned"
    assert page.locator("img").count() == 1, "our own mark"


def test_signing_in_by_hand_and_out_again(browser_page: "Page", service: Service) -> None:
    page = browser_page
    page.goto(f"{service.url}/new")
    assert page.url == f"{service.url}/sign-in?next=/new"
    page.get_by_label("API key").fill("lk_nonsense")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("alert").filter(has_text="not known").wait_for()
    page.get_by_label("API key").fill(service.key(OWNER))
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{service.url}/new")
    assert page.evaluate("document.cookie") == ""
    page.goto(f"{service.url}/sign-in?next=/new")  # where a link from elsewhere ends, as it comes without the cookie
    page.wait_for_url(f"{service.url}/new")
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url(f"{service.url}/sign-in")
    page.goto(service.url)
    assert page.url.startswith(f"{service.url}/sign-in")


def test_the_key_of_a_link_is_never_sent_and_only_used_for_who_opened_it(
    browser_page: "Page", service: Service
) -> None:
    page, key = browser_page, service.key("other")
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    link = f"{service.url}/sign-in#key={key}"
    trap = f"<a href='{link}'>win</a>"
    page.route("http://evil.example/", lambda route: route.fulfill(body=trap, content_type="text/html"))
    page.goto("http://evil.example/")
    page.get_by_role("link", name="win").click()
    page.wait_for_url(f"{service.url}/sign-in")
    assert page.get_by_label("API key").input_value() == key, "one click is left to the reader"
    page.goto("about:blank")
    page.goto(link)
    page.wait_for_url(f"{service.url}/")
    assert not any(key in url for url in sent)


def test_a_recipe_is_corrected_and_submitted(page: "Page", service: Service) -> None:
    page.get_by_role("link", name="New job").first.click()
    text = page.get_by_label("Recipe, as YAML")
    good = text.input_value()
    text.fill(good.replace("nvfp4", "nvfp5"))
    page.get_by_role("button", name="Submit job").click()
    page.get_by_role("button", name="Line 5").click()
    assert "nvfp5" in text.evaluate("it => it.value.slice(it.selectionStart, it.selectionEnd)")
    text.fill(good)
    page.get_by_role("button", name="Submit job").click()
    page.wait_for_url(re.compile(r"/jobs/job_\w+$"))
    assert page.get_by_role("heading", level=1).inner_text() == "my first job"


@pytest.mark.parametrize("width", [360, 1280])
def test_pages_fit_the_screen_and_the_list_is_live(
    page: "Page", service: Service, recipe: Recipe, width: int, tmp_path: Path
) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    claim = service.claim(service.submit(OWNER, recipe))
    page.get_by_role("link", name="fast").wait_for()  # the list asks again by itself
    done = StageFinished(stage="0-fetch", key="a", cached=False, seconds=0.1, peak_memory_bytes=10**6)
    service.record(claim, RunPlanned(stages=PLAN), done)
    service.finish(claim, report_of(recipe), more=("a" * 120,))
    page.locator(".badge.succeeded").wait_for()
    for number, path in enumerate(("/", "/new", f"/jobs/{claim.job_id}")):
        page.goto(service.url + path)
        page.get_by_role("heading", level=1).wait_for()
        page.screenshot(path=tmp_path / f"{number}-{width}.png")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
