"""The pictures of the dashboard in the documentation: every page in light, in dark and on a phone.

LATHE_GALLERY=docs/images/dashboard python -m pytest tests/api/gallery.py
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from dashboard_service import Service, serving
from fixtures.hub import OWNER_TOKEN, hub_at
from gallery_scene import DRAFT, furnish, hub_model
from job_scenes import OWNER

from api.settings import Settings
from api.store import credentials
from api.store.session import make_engine, make_sessions

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

LOOKS = {"light": (1200, 780), "dark": (1200, 780), "phone": (390, 800)}
"""Width and height of each."""


@pytest.fixture(scope="module")
def service(shared_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = Settings(
        database_url=shared_database_url, data_dir=tmp_path_factory.mktemp("gallery"), secret_key="k" * 40
    )
    engine = make_engine(shared_database_url)
    with pytest.MonkeyPatch.context() as patch, hub_at(tmp_path_factory.mktemp("hub")) as hub:
        hub.put_folder("me/stdlib-5m", hub_model())
        patch.setenv("HF_ENDPOINT", hub.url)
        with serving(settings, make_sessions(engine)) as made:
            with made.sessions.begin() as session:
                credentials.put(session, settings.vault, OWNER, "default", OWNER_TOKEN)
            yield made
    engine.dispose()


def test_take_every_picture(browser: "Browser", service: Service) -> None:
    folder = Path(os.environ["LATHE_GALLERY"])
    folder.mkdir(parents=True, exist_ok=True)
    pages, key = furnish(service), service.key(OWNER)
    for look, (width, height) in LOOKS.items():
        context = browser.new_context(
            locale="en-US",
            timezone_id="UTC",
            viewport={"width": width, "height": height},
            color_scheme="dark" if look == "dark" else "light",
            reduced_motion="reduce",
        )
        _take(context, service.url, key, pages, folder / look)
        context.close()


def _take(context: "BrowserContext", url: str, key: str, pages: dict[str, str], look: Path) -> None:
    """One picture of each page; the name of a file ends in the look's."""

    def shoot(name: str) -> None:
        page.screenshot(path=look.with_name(f"{name}-{look.name}.png"))

    page = context.new_page()
    page.goto(f"{url}/sign-in")
    shoot("sign-in")
    page.goto("about:blank")
    page.goto(f"{url}/sign-in#key={key}")
    page.wait_for_url(f"{url}/")
    for name, path in pages.items():
        page.goto(url + path)
        page.get_by_role("heading", level=1).wait_for()
        _READY.get(name, lambda _: None)(page)
        shoot(name)


def _draft(page: "Page") -> None:
    with page.expect_response("**/new/draft"):
        page.get_by_label("Recipe, as YAML").fill(DRAFT)
    page.locator("#estimate tfoot").wait_for()
    page.get_by_text("Nothing to correct. This").wait_for()
    page.evaluate("scrollTo(0, 0)")


def _drawn(page: "Page") -> None:
    page.locator(".plot canvas").first.wait_for()


_READY = {"new": _draft, "job-plots": _drawn}
"""What some pages are waited for."""
