"""The form for a new job in a real browser: fields and YAML in step, reasons, the keyboard alone, and axe-core."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from dashboard_service import Service, serving

from api.estimates import turns
from api.settings import Settings
from api.store import jobs
from api.store.session import Sessions
from optcore.export import AnyExport
from optcore.frozen import members, tag

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.integration

JOB = re.compile(r"/jobs/job_\w+$")


@pytest.fixture
def service(settings: Settings, sessions: Sessions) -> Iterator[Service]:
    with serving(settings, sessions) as running:
        yield running


@pytest.fixture
def page(browser_page: "Page", service: Service) -> Iterator["Page"]:
    """Signed in. What the browser complains about fails the test, and so does a request to anywhere else."""
    complaints: list[str] = []
    asked: list[str] = []
    browser_page.on("console", lambda message: complaints.append(message.text))
    browser_page.on("request", lambda request: asked.append(request.url))
    browser_page.on("dialog", lambda dialog: dialog.accept())  # to leave a form that was changed
    browser_page.goto(f"{service.url}/sign-in#key={service.key('acme')}")
    browser_page.wait_for_url(f"{service.url}/")
    yield browser_page
    assert complaints == []
    assert [url for url in asked if not url.startswith(service.url)] == []


def _yaml(page: "Page") -> str:
    return page.get_by_label("Recipe, as YAML").input_value()


def _until_yaml_has(page: "Page", text: str) -> None:
    page.wait_for_function("text => document.getElementById('recipe').value.includes(text)", arg=text, timeout=8000)


def _violations(page: "Page") -> list[Any]:
    found = Axe().run(page).response["violations"]
    return [
        (each["id"], [node["html"][:200] for node in each["nodes"]][:3])
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


def test_a_template_becomes_a_job(page: "Page", service: Service, tmp_path: Path) -> None:
    page.goto(f"{service.url}/new")
    page.get_by_text("Start from a template").click()
    page.get_by_role("link", name="Fit on 8 GB").click()
    page.wait_for_url("**/new?template=fit-on-8-gb")
    name = page.get_by_label("Name", exact=True)
    name.press_sequentially("from the form")
    _until_yaml_has(page, "name: from the form")
    assert name.evaluate("it => it === document.activeElement"), "typing goes on where it was"

    page.locator("[id='f/target-kind']").select_option(str([tag(kind) for kind in members(AnyExport)].index("gguf")))
    page.locator("#verdict .alert").wait_for()
    assert "GGUF cannot hold" in page.locator("#verdict").inner_text()
    assert page.locator("#draft-news").inner_text() == "One thing to correct"
    assert _violations(page) == []
    page.locator("#verdict [data-field]").click()
    focused = page.evaluate("document.activeElement.id")
    assert focused == "f/chain/0/kv_cache"
    page.get_by_role("button", name=re.compile("Line")).click()
    selected = page.get_by_label("Recipe, as YAML").evaluate("it => it.value.slice(it.selectionStart, it.selectionEnd)")
    assert "kv_cache: fp8" in selected
    page.get_by_label("KV cache").select_option("")
    page.get_by_text("Nothing to correct. This").wait_for()
    assert "kv_cache" not in _yaml(page)

    text = page.get_by_label("Recipe, as YAML")
    text.fill(_yaml(page).replace("int4", "q4_k_m"))
    page.wait_for_function("() => document.getElementById('f/chain/0/scheme').value === 'q4_k_m'")
    page.get_by_text("Nothing to correct. This").wait_for()
    page.get_by_role("button", name="Submit job").dblclick()
    page.wait_for_url(JOB)
    assert page.get_by_role("heading", level=1).inner_text() == "from the form"
    with service.sessions() as session:
        recipe = jobs.get(session, "acme", page.url.rpartition("/")[2]).recipe
    assert recipe["chain"][0]["scheme"] == "q4_k_m"
    assert recipe["target"]["format"] == "gguf"


def test_the_keyboard_is_enough(page: "Page", service: Service) -> None:
    page.goto(f"{service.url}/new")
    palette = page.get_by_text("Add a technique")
    palette.focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Rotation").focus()
    page.keyboard.press("Enter")
    _until_yaml_has(page, "technique: rotate")
    assert page.evaluate("document.activeElement.id") == "f/chain/0-item"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Move down: 1 Rotation"
    page.keyboard.press("Enter")
    page.get_by_text("needs a model that is dense").first.wait_for()
    assert page.evaluate("document.activeElement.id") == "f/chain/1-item"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_text("Nothing to correct. This").wait_for()
    samples = page.get_by_label("Samples", exact=True).first
    samples.focus()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("32")
    page.keyboard.press("Enter")  # brings the form up to date, and removes nothing
    _until_yaml_has(page, "samples: 32")
    assert page.evaluate("document.activeElement.id") == "f/calibration/samples"
    page.get_by_role("button", name="Submit job").focus()
    page.keyboard.press("Enter")
    page.wait_for_url(JOB)


def test_the_estimate_follows_the_draft(page: "Page", service: Service) -> None:
    asked: list[str] = []

    def answer(route: Any) -> None:
        asked.append(route.request.post_data or "")
        route.fulfill(body=f"<p>estimate {len(asked)}</p>", content_type="text/html")

    page.route("**/new/estimate", answer)
    page.goto(f"{service.url}/new")
    page.get_by_text("estimate 1").wait_for()
    page.get_by_label("Samples", exact=True).first.fill("33")
    page.get_by_text("estimate 2").wait_for()
    assert "samples%3A+33" in asked[1]


def test_an_estimate_without_a_turn_is_asked_for_again(
    page: "Page", service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "MOST", 0)
    monkeypatch.setattr(turns, "AGAIN_seconds", 1)
    page.goto(f"{service.url}/new")
    page.get_by_text("asked for again in 1 s").wait_for()
    assert page.get_by_text("does not fit").count() == 0
    monkeypatch.setattr(turns, "MOST", 12)
    page.route("**/new/estimate", lambda route: route.fulfill(body="<p>made</p>", content_type="text/html"))
    page.locator("#estimate").get_by_text("made").wait_for()


def test_a_draft_outlives_a_reload_and_typing_outruns_answers(page: "Page", service: Service) -> None:
    page.goto(f"{service.url}/new")
    waiting: list[Any] = []
    page.route("**/new/draft", lambda route: waiting.append(route))
    name = page.get_by_label("Name", exact=True)
    name.fill("first")
    while not waiting:
        page.wait_for_timeout(50)
    name.fill("second")
    waiting.pop(0).continue_()
    while not waiting:
        page.wait_for_timeout(50)
    assert name.input_value() == "second", "the late answer to `first` is thrown away"
    waiting.pop(0).continue_()
    _until_yaml_has(page, "name: second")
    page.unroute("**/new/draft")
    page.reload()
    _until_yaml_has(page, "name: second")
    page.wait_for_function("() => document.getElementById('f/name').value === 'second'")
    page.goto(f"{service.url}/new")
    assert "name: my first job" in _yaml(page), "a fresh form is fresh"


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_the_form_is_readable_for_all(page: "Page", service: Service, width: int, scheme: Any, tmp_path: Path) -> None:
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.set_viewport_size({"width": width, "height": 844})
    page.goto(f"{service.url}/new?template=speculative-draft")
    page.locator("details").evaluate_all("all => all.forEach(each => { each.open = true; })")
    page.screenshot(path=tmp_path / f"new-{width}-{scheme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert _violations(page) == []


def test_without_a_script_the_same_buttons_work(browser: Any, service: Service) -> None:
    context = browser.new_context(java_script_enabled=False, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    try:
        page.goto(f"{service.url}/sign-in")
        page.get_by_label("API key").fill(service.key("acme"))
        page.get_by_role("button", name="Sign in").click()
        page.goto(f"{service.url}/new")
        page.get_by_text("Add a technique").click()
        page.get_by_role("button", name="Pruning").click()
        assert "technique: prune" in _yaml(page)
        page.get_by_label("Width", exact=True).fill("0.5")
        page.get_by_role("button", name="Submit job").click()
        page.wait_for_url(JOB)
        with service.sessions() as session:
            chain = jobs.get(session, "acme", page.url.rpartition("/")[2]).recipe["chain"]
        assert [(each["technique"], each.get("width")) for each in chain] == [("prune", 0.5), ("ptq", None)]
    finally:
        context.close()
