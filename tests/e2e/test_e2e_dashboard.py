"""The dashboard in Chromium on a real service, from the link that signs in to a webhook that is sent again."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from fixtures.receiver import Receiver
from fixtures.service import Lathe
from fixtures.waiting import until

from optcore.report.numbers import format_value

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.e2e, pytest.mark.proof, pytest.mark.integration, pytest.mark.timeout(600)]

LONGEST_milliseconds = 150_000
JOB = re.compile(r"/jobs/job_\w+$")
TINY = {
    "calibration": {"dataset": "python-stdlib", "samples": 4, "sequence_length": 64},
    "chain": [{"technique": "ptq", "scheme": "fp8"}],
    "evaluate": [{"evaluator": "fidelity", "samples": 2, "sequence_length": 64}],
}
ENDLESS = {**TINY, "chain": [{"technique": "finetune", "steps": 100_000}], "target": {"format": "dense"}}
"""Still running whenever somebody cancels it."""


class Reader:
    """Somebody who looks at every page that they come to with axe-core's eyes."""

    def __init__(self, page: "Page", lathe: Lathe) -> None:
        self.page = page
        self.lathe = lathe
        self.url = lathe.stack.url

    def look(self) -> None:
        """Raise `AssertionError` for what axe-core calls serious or critical."""
        found = Axe().run(self.page).response["violations"]
        grave = [each for each in found if each["impact"] in {"serious", "critical"}]
        assert [(each["id"], each["nodes"][0]["html"][:200]) for each in grave] == [], self.page.url

    def go(self, path: str) -> None:
        self.page.goto(self.url + path)
        self.page.get_by_role("heading", level=1).wait_for()
        self.look()

    def state(self, words: str) -> None:
        """Wait until the job's headline says so, without one reload."""
        self.page.locator("[role=status]", has_text=re.compile(words)).wait_for()

    def finished(self) -> None:
        """Wait until the job succeeds; a failure fails the test at once, with its words."""
        self.state("Finished|Ended")
        assert "Finished" in self.page.locator("[role=status]").inner_text(), self.page.locator("main").inner_text()

    def write(self, recipe: dict[str, Any]) -> None:
        """Put a recipe into the form for a new job as YAML."""
        with self.page.expect_response("**/new/draft"):  # the fields follow; a person would not type into them sooner
            self.page.get_by_label("Recipe, as YAML").fill(yaml.safe_dump(recipe, sort_keys=False))
        follows = "path => document.getElementById('f/model/path')?.value === path"
        self.page.wait_for_function(follows, arg=recipe["model"]["path"])
        self.page.get_by_text("Nothing to correct. This").wait_for()

    def yaml_has(self, text: str) -> None:
        has = "text => document.getElementById('recipe').value.includes(text)"
        self.page.wait_for_function(has, arg=text)

    def submit(self) -> str:
        """Send the form; the job's id."""
        self.page.get_by_role("button", name="Submit job").click()
        self.page.wait_for_url(JOB)
        self.page.evaluate("window.sameDocument = true")
        return self.page.url.rpartition("/")[2]


@pytest.fixture
def reader(lathe: Lathe, browser_page: "Page") -> Iterator[Reader]:
    """What the browser complains about fails the test, and so does a request to anywhere else, in any of its tabs."""
    said: list[str] = []
    asked: list[str] = []
    browser_page.set_default_timeout(LONGEST_milliseconds)
    browser_page.on("console", lambda message: said.append(message.text))
    browser_page.on("dialog", lambda dialog: dialog.accept())
    browser_page.context.on("request", lambda request: asked.append(request.url))
    yield Reader(browser_page, lathe)
    assert [each for each in said if "status of 401" not in each] == [], "the sign-in page asks for a session"
    assert len(asked) > 50
    assert [url for url in asked if not url.startswith(f"{lathe.stack.url}/")] == []


def test_the_whole_journey(reader: Reader, receiver: Receiver, stdlib_model: Path) -> None:
    """Acceptance of the dashboard: every step by hand and eye, none through the API, which only bears witness."""
    source = {"model": {"path": str(stdlib_model)}}
    _sign_in(reader)
    _add_receiver(reader, receiver)
    first = _submit_from_the_form(reader, {**source, **TINY})
    _watch_it_finish(reader)
    _read_the_report(reader, first)
    _download(reader, first)
    _redeliver(reader, receiver, first)
    second = _submit_with_another_scheme(reader, first)
    _compare(reader, first, second)
    _cancel_and_retry(reader, {**source, **ENDLESS})


def _sign_in(reader: Reader) -> None:
    reader.go("/sign-in")
    reader.page.goto("about:blank")  # a hash alone would not load the page again
    reader.page.goto(f"{reader.url}/sign-in#key={reader.lathe.stack.api_key}")
    reader.page.wait_for_url(f"{reader.url}/")
    reader.look()


def _add_receiver(reader: Reader, receiver: Receiver) -> None:
    page = reader.page
    reader.go("/settings/webhooks")
    page.get_by_label("Address").fill(receiver.url)
    for event in page.locator("[name=event]").all():
        event.set_checked(event.get_attribute("value") == "job.succeeded")
    page.get_by_role("button", name="Add endpoint").click()
    assert page.locator(".secret").inner_text().startswith("whsec_")
    reader.look()


def _submit_from_the_form(reader: Reader, recipe: dict[str, Any]) -> str:
    """A recipe as YAML, and two fields beside it; the estimate comes by itself."""
    page = reader.page
    reader.go("/new")
    reader.write(recipe)
    page.get_by_label("Name", exact=True).fill("from the form")
    reader.yaml_has("name: from the form")
    page.locator("[id='f/chain/0/scheme']").select_option("fp8_dynamic")
    reader.yaml_has("scheme: fp8_dynamic")
    estimate = page.locator("#estimate")
    estimate.locator("tfoot").wait_for()
    reader.look()
    assert estimate.locator(".badge").first.inner_text() == "fits"
    assert estimate.locator("p.bad, p.notice").count() == 0
    assert re.search(r"Time\s+[\d.]+ s\s+[\d.]+ s to [\d.]+ s", estimate.inner_text())
    assert estimate.get_by_role("row", name=re.compile("^1-ptq")).count() == 1
    return reader.submit()


def _watch_it_finish(reader: Reader) -> None:
    page = reader.page
    page.locator("[role=status]", has_text=re.compile("queued|running")).wait_for()
    reader.state(r"Stage \d of \d")
    page.locator("tr.pending .note", has_text="expected").first.wait_for()
    reader.state("2-export|3-evaluate")
    reader.finished()
    assert page.evaluate("window.sameDocument"), "the page was never loaded again"
    reader.look()


def _read_the_report(reader: Reader, job_id: str) -> None:
    """The page, the report's own page and the REST report say the same."""
    page = reader.page
    measured = reader.lathe.client.jobs.report(job_id).measurements
    with page.expect_popup() as popup:
        page.get_by_role("link", name="Full report").click()
    report = popup.value
    report.wait_for_url("**/report")  # its sandbox is a process of its own, and on the way there it cannot be asked
    with report.expect_response("**/report") as answer:
        report.reload()
    assert "sandbox" in answer.value.headers["content-security-policy"]
    written = " ".join(report.locator("body").inner_text().split())
    for row in measured:
        cells = page.get_by_role("row", name=row.title).first.get_by_role("cell").all_inner_texts()
        before, after = format_value(row.source, row.unit), format_value(row.result, row.unit)
        assert cells[0] == before, row.title
        assert after in cells, row.title
        assert before in written, row.title
        assert after in written, row.title
    assert format_value(next(row.source for row in measured if row.name == "weight_bytes"), "bytes") == "10.5 MB"
    report.close()


def _download(reader: Reader, job_id: str) -> None:
    page = reader.page
    promised = {file.path: file.sha256 for file in reader.lathe.client.artifacts.list(job_id)}
    for tab in ("Plots", "Logs", "Recipe & lineage", "Artifacts"):
        page.get_by_role("navigation", name="Sections of the job").get_by_role("link", name=tab).click()
        page.locator(".tabs [aria-current]", has_text=tab).wait_for()
        reader.look()
    weights = next(path for path in promised if path.endswith(".safetensors"))
    with page.expect_download() as download:
        page.get_by_role("link", name=weights, exact=True).click()
    content = Path(download.value.path()).read_bytes()
    assert hashlib.sha256(content).hexdigest() == promised[weights]


def _redeliver(reader: Reader, receiver: Receiver, job_id: str) -> None:
    page = reader.page
    until(lambda: receiver.requests, "the webhook")
    page.get_by_role("link", name="Deliveries").click()
    page.get_by_role("row", name=re.compile("job.succeeded")).locator(".badge.delivered").wait_for()
    reader.look()
    page.get_by_role("button", name="Redeliver job.succeeded").click()
    until(lambda: len(receiver.requests) == 2, "the webhook once more")
    assert len({headers["webhook-id"] for headers, _ in receiver.requests}) == 1
    assert all(job_id.encode() in body for _, body in receiver.requests)
    page.get_by_role("row", name=re.compile("job.succeeded")).get_by_role("cell", name="2", exact=True).wait_for()
    page.get_by_role("link", name="Settings").click()
    page.get_by_role("link", name="Webhooks").click()
    page.get_by_role("link", name=receiver.url).click()
    page.get_by_text("attempt 2").wait_for()
    reader.look()


def _submit_with_another_scheme(reader: Reader, job_id: str) -> str:
    page = reader.page
    reader.go(f"/jobs/{job_id}")
    page.get_by_role("link", name="Run again with changes").click()
    reader.yaml_has("scheme: fp8_dynamic")
    page.get_by_label("Name", exact=True).fill("the other one")
    page.locator("[id='f/chain/0/scheme']").select_option("int8")
    reader.yaml_has("scheme: int8")
    page.get_by_text("Nothing to correct. This").wait_for()
    second = reader.submit()
    reader.finished()
    return second


def _compare(reader: Reader, first: str, second: str) -> None:
    page = reader.page
    page.get_by_role("link", name="Jobs", exact=True).first.click()
    page.get_by_label("Compare from the form").check()
    page.get_by_label("Compare the other one").check()
    reader.look()
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_role("heading", name="Compare 2 jobs").wait_for()
    assert page.locator("svg.scatter circle").count() == 2
    assert page.locator(".sides li").count() == 2
    row = page.get_by_role("row", name="Weights on disk").get_by_role("cell").all_inner_texts()
    reports = [reader.lathe.client.jobs.report(job_id) for job_id in (first, second)]
    for report in reports:
        size = next(each.result for each in report.measurements if each.name == "weight_bytes")
        assert any(cell.startswith(format_value(size, "bytes")) for cell in row)
    assert page.get_by_role("row", name=re.compile("scheme")).get_by_text("fp8_dynamic").count() == 1
    reader.look()
    reader.go("/workers")
    reader.go("/settings")


def _cancel_and_retry(reader: Reader, recipe: dict[str, Any]) -> None:
    page = reader.page
    reader.go("/new")
    reader.write({"name": "too long", **recipe})
    reader.submit()
    reader.state("1-finetune")
    page.get_by_role("button", name="Cancel job").click()
    reader.state("Ended because its owner asked")
    reader.look()
    assert page.evaluate("window.sameDocument"), "the page was never loaded again"
    page.get_by_role("button", name="Retry").click()
    reader.state("1-finetune")
    assert page.get_by_role("row", name=re.compile("^2 run 2")).count() == 1
    page.get_by_role("button", name="Cancel job").click()
    reader.state("Ended because its owner asked")
