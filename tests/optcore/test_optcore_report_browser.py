"""The report's page in a real browser: it asks for nothing, runs nothing and fits the screen."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from optcore.report import LayerError, Measurement, Report, Series, StageCost
from optcore.report.page import render_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.integration

ATTACK = "<script>document.title = 'owned'</script><img src=//127.0.0.1:9/x onerror=\"document.title = 'owned'\">"


@pytest.fixture
def address(tmp_path: Path) -> str:
    report = Report(
        model=f"models/{ATTACK}",
        source_digest="a" * 64,
        artifact_digest="b" * 64,
        scheme="NVFP4 W4A4, blocks of 16",
        recipe={"name": ATTACK},
        measurements=tuple(
            Measurement(name=f"m{i}", title=f"Measure {i}", source=1, baseline=0.5, result=0.4, better="lower")
            for i in range(6)
        ),
        stages=(StageCost(name="1-ptq", seconds=3, peak_memory_bytes=10**9),),
        layer_errors=tuple(LayerError(layer=f"model.layers.{i}", relative_error=0.01) for i in range(40)),
        series=(Series(name="loss", title="Loss", points=tuple((float(i), 1 / (i + 1)) for i in range(1000))),),
        notices=(ATTACK,),
        environment={"hardware": ATTACK},
    )
    page = tmp_path / "report.html"
    page.write_text(render_page(report), encoding="utf-8")
    return page.as_uri()


def test_it_asks_for_nothing_and_runs_nothing(browser_page: "Page", address: str) -> None:
    asked: list[str] = []
    browser_page.on("request", lambda request: asked.append(request.url))
    complaints: list[str] = []
    browser_page.on("console", lambda message: complaints.append(message.text))
    browser_page.goto(address)
    assert asked == [address]
    assert complaints == []
    assert browser_page.title() != "owned"
    assert ATTACK in browser_page.locator("h1").inner_text()


@pytest.mark.parametrize("width", [320, 768, 1280])
def test_it_fits_the_screen(browser_page: "Page", address: str, width: int) -> None:
    browser_page.set_viewport_size({"width": width, "height": 800})
    browser_page.goto(address)
    assert browser_page.evaluate("document.documentElement.scrollWidth") <= width


def test_it_follows_the_readers_light(browser: "Browser", address: str) -> None:
    grounds = {}
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme, locale="en-US")
        page = context.new_page()
        page.goto(address)
        grounds[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        context.close()
    assert grounds == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"}


def test_a_screen_reader_finds_the_numbers(browser_page: "Page", address: str) -> None:
    browser_page.goto(address)
    assert browser_page.get_by_role("heading", level=1).count() == 1
    assert browser_page.get_by_role("row", name="Measure 3").get_by_role("cell").first.inner_text() == "1"
    assert browser_page.get_by_role("img", name="Measure 3: source 1, max scales 0.5, result 0.4").count() == 1
