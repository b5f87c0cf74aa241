"""The page of a job in a real browser: curves, the log, the verbs and deliveries as they change before the reader."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from axe_playwright_python.sync_playwright import DEFAULT_OPTIONS, Axe
from dashboard_service import Service, serving
from fixtures.waiting import until
from job_scenes import OWNER, failed, gated, losses, report, running, succeeded, write

from api import lifecycle
from api.settings import Settings
from api.store import jobs, webhook_deliveries, webhook_messages, webhooks
from api.store.session import make_engine, make_sessions
from api.store.webhook_deliveries import Outcome
from optcore.events import GPU_MEMORY, MEMORY, Metric

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

pytestmark = pytest.mark.integration

STATUS = "server responded with a status of 4"
OUTAGE = "server responded with a status of 502"
"""What a browser writes about any refusal; the tests look at those themselves."""
TABS = ("", "/plots", "/logs", "/artifacts", "/recipe", "/deliveries")


@pytest.fixture(scope="module")
def service(shared_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("job-page")
    settings = Settings(database_url=shared_database_url, data_dir=folder, secret_key="k" * 40, model_roots=(folder,))
    engine = make_engine(shared_database_url)
    with serving(settings, make_sessions(engine)) as made:
        yield made
    engine.dispose()


@pytest.fixture(scope="module")
def context(browser: "Browser", service: Service) -> Iterator["BrowserContext"]:
    """A browser that is signed in."""
    made = browser.new_context(locale="en-US", timezone_id="UTC", viewport={"width": 1280, "height": 900})
    page = made.new_page()
    page.goto(f"{service.url}/sign-in#key={service.key(OWNER)}")
    page.wait_for_url(f"{service.url}/")
    page.close()
    yield made
    made.close()


@pytest.fixture
def page(context: "BrowserContext", service: Service) -> Iterator["Page"]:
    """What the browser complains about fails the test, and so does a request to anywhere else."""
    page, said, asked = context.new_page(), [], []  # type: ignore[var-annotated]
    page.set_default_timeout(8000)
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    yield page
    page.close()
    assert [each for each in said if STATUS not in each and OUTAGE not in each] == []
    assert [url for url in asked if not url.startswith(service.url)] == []


@pytest.fixture(scope="module")
def done(service: Service) -> str:
    return succeeded(service)


def _state(page: "Page", words: str) -> None:
    page.locator("[role=status]", has_text=re.compile(words)).wait_for()


def test_a_curve_grows_and_keeps_the_readers_zoom(page: "Page", service: Service) -> None:
    claim = running(service)
    page.goto(f"{service.url}/jobs/{claim.job_id}/plots")
    loss = page.locator(".plot").first
    loss.locator("canvas").wait_for()
    page.evaluate("window.firstCanvas = document.querySelector('.plot canvas')")
    last = page.get_by_role("row", name=re.compile("^loss"))
    last.get_by_text("step 259").wait_for()
    box = loss.locator(".u-over").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 60, steps=4)
    page.mouse.up()
    back = loss.get_by_text("Show every step")
    back.wait_for()
    shown = back.get_attribute("title")
    service.record(claim, *losses("2-qad", 260, 400))
    last.get_by_text("step 399").wait_for()
    assert page.evaluate("window.firstCanvas === document.querySelector('.plot canvas')"), "not drawn anew"
    assert back.get_attribute("title") == shown, "whatever came behind what is shown"
    back.click()
    back.wait_for(state="hidden")
    service.finish(claim, report(), more=())
    _state(page, "Finished")


def test_memory_is_drawn_in_bytes_and_errors_by_layer(page: "Page", service: Service) -> None:
    claim = running(service)
    seconds = range(2, 60, 2)
    held = [Metric(stage="2-qad", name=MEMORY, value=4e8 + 2e7 * at, step=at) for at in seconds]
    held += [Metric(stage="2-qad", name=GPU_MEMORY, value=1.4e9, step=at) for at in seconds]
    errors = [Metric(stage="1-ptq", name="reconstruction_error", value=0.05 + 0.002 * i, step=i) for i in range(28)]
    service.record(claim, *held, *errors)
    page.goto(f"{service.url}/jobs/{claim.job_id}/plots")
    page.get_by_role("row", name=re.compile("^host")).get_by_text("1.56 GB second 58").wait_for()
    page.get_by_role("row", name=re.compile("^reconstruction error")).get_by_text("layer 27").wait_for()
    memory = page.locator("figure", has_text="Memory in use").locator(".u-over")
    memory.hover()
    shown = (
        memory.locator("xpath=ancestor::*[contains(@class, 'uplot')]").locator(".u-legend .u-value").all_inner_texts()
    )
    assert re.fullmatch(r"[\d.]+ (M|G)B", shown[2]), shown
    assert shown[1] == "1.4 GB"


def _pixels(page: "Page") -> str:
    page.mouse.move(0, 0)
    return str(
        page.evaluate(
            "new Promise(d => requestAnimationFrame(() => d(document.querySelector('.plot canvas').toDataURL())))"
        )
    )


def test_a_curve_takes_the_colours_of_the_night(page: "Page", service: Service, done: str) -> None:
    page.goto(f"{service.url}/jobs/{done}/plots")
    page.locator(".plot canvas").first.wait_for()
    day = _pixels(page)
    page.emulate_media(color_scheme="dark")
    until(lambda: _pixels(page) != day)
    page.get_by_role("button", name="Light").click()
    until(lambda: _pixels(page) == day)
    with page.expect_response("**/theme"):
        page.get_by_role("button", name="As the system").click()
    until(lambda: _pixels(page) != day)


def test_the_timeline_grows_between_messages(page: "Page", service: Service) -> None:
    claim = running(service)
    page.goto(f"{service.url}/jobs/{claim.job_id}")
    growing = page.locator("rect.bar.running[data-grows]").last
    first = float((growing.get_attribute("width") or "").rstrip("%"))
    until(lambda: float((growing.get_attribute("width") or "0").rstrip("%")) > first)


def test_the_log_follows_until_the_reader_scrolls_up(page: "Page", service: Service) -> None:
    claim = running(service)
    page.goto(f"{service.url}/jobs/{claim.job_id}/logs")
    log, again = page.locator("#log"), page.get_by_role("button", name="Follow again")
    log.get_by_text("step 259").wait_for()
    at_end = "it => it.scrollHeight - it.scrollTop - it.clientHeight < 24"
    assert log.evaluate(at_end)
    write(service, claim, "a new line\n")
    until(lambda: "a new line" in log.inner_text())
    assert log.evaluate(at_end)
    log.evaluate("it => it.scrollTop = 0")
    again.wait_for()
    write(service, claim, "another <b>line</b>\n")
    until(lambda: "another <b>line</b>" in log.inner_text())
    assert log.evaluate("it => it.scrollTop") == 0, "the reader stays where they read"
    assert log.locator("b").count() == 0
    again.click()
    assert log.evaluate(at_end)
    again.wait_for(state="hidden")


def test_a_flood_is_bounded_and_words_are_found_in_it(page: "Page", service: Service) -> None:
    claim = running(service)
    page.goto(f"{service.url}/jobs/{claim.job_id}/logs")
    log = page.locator("#log")
    log.get_by_text("step 259").wait_for()
    for part in range(24):
        write(service, claim, f"part {part:02d} {'y' * 100_000}\n")
    until(lambda: "part 23" in log.evaluate("it => it.textContent"))
    assert log.evaluate("it => it.textContent.length") < 1_200_000
    assert "part 02" not in log.evaluate("it => it.textContent")
    find, found = page.get_by_label("Find"), page.locator("#found")
    find.fill("part ")
    until(lambda: re.fullmatch(r"1 of \d+", found.inner_text()))
    find.press("Enter")
    assert found.inner_text().startswith("2 of")
    assert page.evaluate("CSS.highlights.get('found').size") > 5
    find.fill("no such words")
    assert found.inner_text() == "none"
    page.get_by_label("Wrap lines").check()
    assert log.evaluate("it => it.scrollWidth <= it.clientWidth + 1")
    page.get_by_label("Attempt").select_option("1")
    page.wait_for_url(re.compile("attempt=1"))
    assert page.locator("#log").inner_text() == "loading Qwen/Qwen3-0.6B\ncalibrating layer 0\n"
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert Path(download.value.path()).read_text() == "loading Qwen/Qwen3-0.6B\ncalibrating layer 0\n"


def test_a_job_is_paused_resumed_cancelled_retried_and_deleted(page: "Page", service: Service) -> None:
    job_id = service.submit(OWNER, gated())
    page.goto(f"{service.url}/jobs/{job_id}")
    page.evaluate("window.sameDocument = true")
    page.get_by_role("button", name="Pause").click()
    _state(page, "Set aside")
    page.get_by_role("button", name="Resume").click()
    _state(page, "Waiting for a worker")
    claim = service.claim(job_id)
    _state(page, "A worker has the job")
    page.get_by_role("button", name="Pause").click()
    _state(page, "Pausing")
    with service.sessions.begin() as session:
        lifecycle.paused(session, claim)
    _state(page, "Set aside")
    assert page.evaluate("window.sameDocument"), "the page was never loaded again"
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Cancel job").click()
    _state(page, "Ended because its owner asked")
    page.get_by_role("button", name="Retry").click()
    _state(page, "Waiting for a worker, attempt 2")
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Cancel job").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    ask = page.get_by_role("dialog", name="Delete this job?")
    ask.get_by_role("button", name="Keep it").click()
    ask.wait_for(state="hidden")
    page.get_by_role("button", name="Delete", exact=True).press("Enter")
    ask.get_by_role("button", name="Delete for good").click()
    page.wait_for_url(f"{service.url}/")
    with service.sessions() as session:
        assert jobs.find(session, job_id) is None


def test_what_the_state_forbids_by_now_is_a_message(page: "Page", service: Service) -> None:
    job_id = service.submit(OWNER, gated())
    page.route("**/live?*", lambda route: None)  # the news is late
    page.goto(f"{service.url}/jobs/{job_id}")
    with service.sessions.begin() as session:
        lifecycle.request_cancel(session, OWNER, job_id)
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("alert").filter(has_text="Not done: the job is cancelled").wait_for()
    assert page.get_by_role("heading", level=1).inner_text() == "qwen3-0.6b nvfp4"


def test_deliveries_go_on_after_an_answer_that_failed(page: "Page", service: Service) -> None:
    job_id = service.submit(OWNER, gated())
    message_id = _tell(service, job_id)
    page.goto(f"{service.url}/jobs/{job_id}/deliveries")
    with page.expect_response(lambda answer: answer.status == 502):
        page.route("**/deliveries", lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"), times=1)
    _deliver(service, message_id, Outcome(delivered=True, seconds=0.1, status_code=204))
    page.locator(".badge.delivered").wait_for()
    assert page.get_by_text("Bad gateway").count() == 0


def test_a_failure_comes_with_the_end_of_the_log_in_view(page: "Page", service: Service) -> None:
    page.goto(f"{service.url}/jobs/{failed(service)}")
    assert page.get_by_role("alert").get_by_text("the GPU's memory is full").is_visible()
    last = page.get_by_text("the very last line")
    assert last.evaluate("it => it.getBoundingClientRect().bottom <= innerHeight")
    page.get_by_role("link", name="Whole log").click()
    log = page.locator("#log")
    until(lambda: log.evaluate("it => it.scrollHeight - it.scrollTop - it.clientHeight < 24"))


def test_a_message_is_redelivered_before_the_readers_eyes(page: "Page", service: Service) -> None:
    job_id = service.submit(OWNER, gated())
    message_id = _tell(service, job_id)
    _deliver(service, message_id, Outcome(delivered=False, seconds=0.2, status_code=500))
    page.goto(f"{service.url}/jobs/{job_id}/deliveries")
    row = page.get_by_role("row", name=re.compile("job.failed"))
    row.get_by_text("500").wait_for()
    page.get_by_role("button", name="Redeliver job.failed to hooks.example").click()
    row.locator(".badge.pending").wait_for()
    _deliver(service, message_id, Outcome(delivered=True, seconds=0.1, status_code=204))
    row.locator(".badge.delivered").wait_for()
    row.get_by_text("204").wait_for()
    page.locator("#poll").wait_for(state="detached")


def _tell(service: Service, job_id: str) -> str:
    """A message about the job that is on its way."""
    with service.sessions.begin() as session:
        url = "https://hooks.example/x"
        endpoint, _ = webhooks.create_endpoint(session, service.settings.vault, OWNER, url, ["job.failed"])
        return webhook_messages.add(session, endpoint.id, "job.failed", {}, job_id).id


def _deliver(service: Service, message_id: str, outcome: Outcome) -> None:
    with service.sessions.begin() as session:
        outgoing = webhook_deliveries.begin(session, service.settings.vault, message_id)
        assert outgoing is not None
        webhook_deliveries.end(session, outgoing, outcome, dead_limit=9)


@pytest.fixture(scope="module")
def in_every_state(service: Service, done: str) -> list[str]:
    """A page of each kind: every tab of a finished job, and what only others show."""
    live = running(service).job_id
    _tell(service, live)
    quiet = [f"{done}{tab}" for tab in TABS if tab not in {"/logs", "/deliveries"}]
    return [*quiet, live, f"{live}/logs", f"{live}/deliveries", failed(service)]


def test_nothing_keeps_anybody_out(page: "Page", service: Service, in_every_state: list[str]) -> None:
    """axe-core in the day's colours; in those of the night, colours are all that differs."""
    night = {"resultTypes": ["violations"], "runOnly": ["color-contrast"]}
    found = {}
    for path in in_every_state:
        page.emulate_media(color_scheme="light", reduced_motion="reduce")
        page.goto(f"{service.url}/jobs/{path}")
        page.get_by_role("heading", level=1).wait_for()
        for scheme, options in (("light", DEFAULT_OPTIONS), ("dark", night)):
            page.emulate_media(color_scheme=scheme)
            result = Axe().run(page, options=options)
            grave = [each for each in result.response["violations"] if each["impact"] in {"serious", "critical"}]
            found |= {(path, scheme, each["id"]): [node["html"][:200] for node in each["nodes"]] for each in grave}
    assert found == {}


def test_the_page_fits_a_phone_and_a_keyboard(page: "Page", service: Service, done: str) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    for tab in TABS:
        page.goto(f"{service.url}/jobs/{done}{tab}")
        page.get_by_role("heading", level=1).wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab
    page.goto(f"{service.url}/jobs/{done}")
    page.get_by_role("link", name="Logs").focus()
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("/logs$"))
    page.locator("#log").focus()
    ring = page.locator("#log").evaluate("it => getComputedStyle(it).outlineStyle")
    assert ring == "solid"
