"""A real job before the eyes of somebody at the dashboard, in Chromium."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fixtures.service import Lathe

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.e2e, pytest.mark.proof, pytest.mark.integration, pytest.mark.timeout(600)]
LONGEST_milliseconds = 300_000


def test_the_page_goes_from_queued_to_succeeded_live(lathe: Lathe, browser_page: "Page", stdlib_model: Path) -> None:
    """Signed in by the link that `lathe up` prints; not one reload until the measured table is there."""
    browser_page.set_default_timeout(LONGEST_milliseconds)
    browser_page.goto(f"{lathe.stack.url}/sign-in#key={lathe.stack.api_key}")
    browser_page.get_by_role("link", name="New job").first.wait_for()
    job = lathe.client.jobs.create(
        {
            "name": "watched",
            "model": {"path": str(stdlib_model)},
            "calibration": {"dataset": "python-stdlib", "samples": 4, "sequence_length": 64},
            "chain": [{"technique": "ptq", "scheme": "fp8_dynamic"}],
            "evaluate": [{"evaluator": "fidelity", "samples": 2, "sequence_length": 64}],
        }
    )
    browser_page.goto(f"{lathe.stack.url}/jobs/{job.id}")
    browser_page.evaluate("window.sameDocument = true")
    status = browser_page.locator("[role=status]")
    assert any(word in status.inner_text() for word in ("queued", "running"))
    browser_page.locator("[role=status]", has_text="2-export").wait_for()
    browser_page.locator("[role=status]", has_text="Finished").wait_for()
    cells = browser_page.get_by_role("row", name="Weights on disk").get_by_role("cell").all_inner_texts()
    assert cells[0] == "10.5 MB"
    assert browser_page.evaluate("window.sameDocument"), "the page was never loaded again"
