"""The pages around a job in a real browser: find, compare, make a key, try a receiver out; for every eye and width."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from compared_jobs import finished, report
from dashboard_service import Service, serving
from fixtures.documents import DOCUMENT
from fixtures.receiver import Receiver
from sqlalchemy import func, select, text, update

from api.settings import Settings
from api.store import credentials, webhooks, workers
from api.store.models import Host, WebhookMessage, Worker
from api.store.session import make_engine, make_sessions
from api.store.workers import Capacity
from optcore.events import RunPlanned, StageFinished, StageStarted
from optcore.recipe import recipe_from
from worker.capacity import capacity
from worker.context import Context
from worker.fitness import Fitness
from worker.settings import WorkerSettings
from worker.webhooks import deliver

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.integration

OWNER = "acme"
SECRET_KEY = "k" * 40
STATUS = "server responded with a status of 4"
OUTAGE = "server responded with a status of 502"
H200 = Capacity("alder", "cuda", 8, "NVIDIA H200", 141 * 10**9, host_memory_bytes=2 * 10**12, cores=192)
PLAN = ("0-fetch", "1-ptq", "2-export", "3-evaluate")


@dataclass
class World:
    """A service with something on every page."""

    service: Service
    key: str
    small: str
    fine: str
    beaten: str


@pytest.fixture(scope="module")
def world(shared_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    engine = make_engine(shared_database_url, pool_size=8)
    settings = Settings(
        database_url=shared_database_url,
        data_dir=tmp_path_factory.mktemp("data"),
        secret_key=SECRET_KEY,
        allow_private_webhooks=("127.0.0.1",),
    )
    try:
        with serving(settings, make_sessions(engine)) as service:
            yield _world(service)
    finally:
        engine.dispose()


def _world(service: Service) -> World:
    def done(name: str, number_format: str, **changes: Any) -> str:
        asked = {**DOCUMENT, "name": name, "chain": [{"technique": "ptq", "scheme": number_format}]}
        return finished(service.sessions, service.settings, asked, report(**changes).to_json())

    made = World(
        service=service,
        key=service.key(OWNER),
        small=done("qwen3-nvfp4", "nvfp4"),
        fine=done("qwen3-fp8", "fp8", size=8.6e9, kl=0.004, speed=104.0, scheme="FP8 W8A8"),
        beaten=done("qwen3-int8", "int8", size=8.9e9, kl=0.011, speed=71.0, scheme="INT8 W8A8"),
    )
    claim = service.claim(service.submit(OWNER, recipe_from({**DOCUMENT, "name": "qwen3-under-way"})))
    fetched = StageFinished(stage=PLAN[0], key="a", cached=True, seconds=0.1, peak_memory_bytes=10**6)
    service.record(claim, RunPlanned(stages=PLAN), fetched, StageStarted(stage=PLAN[1], key="b"))
    service.submit(OWNER, recipe_from({**DOCUMENT, "name": "waits for its turn", "metadata": {}}))
    with service.sessions.begin() as session:
        credentials.put(session, service.settings.vault, OWNER, "hub-main", "hf_secret")
        workers.beat(session, "worker-1", H200, disk_free_bytes=5 * 10**12)
        workers.beat(session, "birch:7:c4", capacity(()), unfit="1.2 GB free below LATHE_DATA_DIR, 5 GB are wanted")
        workers.beat(session, "cedar:9:d5", Capacity("cedar", "cpu", cores=16))
        workers.beat(session, "alder:3:a1", H200)
        past = func.now() - text("interval '5 minutes'")
        session.execute(update(Worker).where(Worker.id == "alder:3:a1").values(seen_at=past))
        session.add(Host(name="cedar", quarantined_at=func.now()))
    return made


@pytest.fixture
def page(browser_page: "Page", world: World) -> Iterator["Page"]:
    """Signed in. What the browser complains about fails the test, and so does a request to anywhere else."""
    complaints: list[str] = []
    browser_page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    asked: list[str] = []
    browser_page.on("request", lambda request: asked.append(request.url))
    browser_page.goto(f"{world.service.url}/sign-in#key={world.key}")
    browser_page.wait_for_url(f"{world.service.url}/")
    yield browser_page
    assert [each for each in complaints if STATUS not in each and OUTAGE not in each] == []
    assert [url for url in asked if not url.startswith(world.service.url)] == []


def test_jobs_are_found_picked_and_compared(page: "Page", world: World, tmp_path: Path) -> None:
    rows = page.locator("#rows tr")
    assert rows.count() == 5
    search = page.get_by_label("Name contains")
    search.press_sequentially("QWEN3-")
    rows.nth(4).wait_for(state="detached")
    page.wait_for_url(re.compile(r"\?name=QWEN3-$"))
    assert search.evaluate("it => it === document.activeElement"), "typing goes on"
    page.get_by_label("Compare qwen3-nvfp4").check()
    assert page.get_by_role("button", name="Compare", exact=True).is_disabled()
    page.get_by_label("Compare qwen3-fp8").check()
    page.evaluate("new Promise(done => document.addEventListener('htmx:after:swap', () => done(), { once: true }))")
    assert page.get_by_label("Compare qwen3-fp8").is_checked(), "what comes later does not untick it"
    page.get_by_role("link", name="Succeeded").click()
    page.get_by_text("2 jobs picked").wait_for()
    page.screenshot(path=tmp_path / "picked.png")
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_role("heading", name="Compare 2 jobs").wait_for()
    row = page.get_by_role("row", name="Weights on disk")
    assert row.get_by_role("cell").all_inner_texts() == ["16 GB", "5 GB\nbest", "8.6 GB\n+72.0%"]
    assert page.locator("svg.scatter circle").count() == 2
    page.get_by_label("Another job").select_option(label="qwen3-int8 · ptq int8")
    page.get_by_role("button", name="Add").click()
    assert page.locator(".sides").get_by_text("Beaten by B").count() == 1
    page.get_by_role("link", name="Remove qwen3-nvfp4").click()
    page.get_by_role("heading", name="Compare 2 jobs").wait_for()
    assert page.get_by_text("qwen3-nvfp4").count() == 1, "only among those that can be added"


def test_a_key_is_made_shown_once_and_revoked(page: "Page", world: World, tmp_path: Path) -> None:
    page.get_by_role("link", name="Settings").click()
    page.get_by_role("link", name="API keys").click()
    page.get_by_label("Name").fill("ci")
    page.get_by_label("jobs:write").check()
    page.get_by_role("button", name="Make key").click()
    secret = page.locator(".secret").inner_text()
    page.screenshot(path=tmp_path / "made.png", full_page=True)
    assert page.request.get(f"{world.service.url}/v1/jobs", headers={"Authorization": f"Bearer {secret}"}).ok
    page.get_by_role("link", name="API keys").click()
    assert secret not in page.content()
    row = page.get_by_role("row", name="ci lk_")
    row.locator("summary").click()
    row.get_by_role("button", name="Revoke").click()
    page.get_by_role("status").get_by_text("The key is revoked").wait_for()
    answer = page.request.get(f"{world.service.url}/v1/jobs", headers={"Authorization": f"Bearer {secret}"})
    assert answer.status == 401


def test_a_receiver_is_added_tried_out_and_told_again(
    page: "Page", world: World, receiver: Receiver, tmp_path: Path
) -> None:
    page.goto(f"{world.service.url}/settings/webhooks")
    page.get_by_label("Address").fill(receiver.url)
    page.get_by_label("job.queued").check()
    page.get_by_role("button", name="Add endpoint").click()
    assert page.locator(".secret").inner_text().startswith("whsec_")
    page.get_by_role("button", name="Send a test").click()
    page.get_by_role("status").get_by_text("A test is on its way").wait_for()
    _deliver(world)
    page.locator("td", has_text="204").wait_for(timeout=8000)  # by itself
    marked = page.locator("[aria-current]").all_inner_texts()
    assert marked == ["Settings", "Webhooks"], "whatever the address says was done"
    page.get_by_role("button", name="Redeliver").click()
    page.get_by_role("status").get_by_text("sent again").wait_for()
    _deliver(world)
    page.get_by_text("attempt 2").wait_for(timeout=8000)
    assert len({headers["webhook-id"] for headers, _ in receiver.requests}) == 1
    assert len(receiver.requests) == 2
    page.screenshot(path=tmp_path / "deliveries.png", full_page=True)
    page.get_by_role("button", name="Disable").click()
    page.get_by_text("Disabled by its owner").wait_for()
    assert page.get_by_role("button", name="Redeliver").count() == 0


def _deliver(world: World) -> None:
    """What a worker does with the messages that wait."""
    service = world.service
    settings = WorkerSettings(
        database_url=service.settings.database_url,
        data_dir=service.settings.data_dir,
        secret_key=SECRET_KEY,
        allow_private_webhooks=("127.0.0.1",),
    )
    context = Context(settings, service.sessions, "worker-1", capacity(()), (), Fitness(settings, ()))
    with service.sessions() as session:
        waiting = session.scalars(select(WebhookMessage.id).where(WebhookMessage.status == "pending")).all()
    for message_id in waiting:
        deliver(message_id, context)


def test_what_the_reader_opened_stays_open_while_the_page_is_live(page: "Page", world: World) -> None:
    page.goto(f"{world.service.url}/workers")
    page.get_by_text("1 not heard of").click()
    with world.service.sessions.begin() as session:
        workers.beat(session, "new", Capacity("dogwood", "cpu", cores=4))
    page.get_by_role("row", name="dogwood").wait_for(timeout=8000)
    assert page.get_by_text("alder:3:a1").is_visible()


def test_the_list_lives_on_after_an_answer_that_failed(page: "Page", world: World) -> None:
    page.goto(f"{world.service.url}/")
    with page.expect_response(lambda answer: answer.status == 502):
        page.route(
            f"{world.service.url}/", lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"), times=1
        )
    world.service.submit(OWNER, recipe_from({**DOCUMENT, "name": "comes later"}))
    page.get_by_role("link", name="comes later").wait_for(timeout=8000)
    assert page.get_by_text("Bad gateway").count() == 0


def test_the_theme_is_chosen_at_once_and_remembered(page: "Page", world: World) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.evaluate("window.sameDocument = true")
    with page.expect_response("**/theme"):
        page.get_by_role("button", name="Dark").click()
    assert page.evaluate(ground) != light
    assert page.evaluate("window.sameDocument")
    page.goto(f"{world.service.url}/workers")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.get_by_role("button", name="Dark").get_attribute("aria-pressed") == "true"
    page.get_by_role("button", name="As the system").click()
    assert page.evaluate(ground) == light


PAGES = (
    *("/", "/?name=nothing", "/compare", "COMPARISON", "/workers", "/settings", "/settings/keys"),
    *("/settings/credentials", "/settings/webhooks", "ENDPOINT", "/settings/audit"),
)


LOOKS: tuple[tuple[int, str, dict[str, Any]], ...] = (
    (1280, "light", {}),
    (1280, "dark", {"runOnly": ["color-contrast"]}),
    (390, "light", {"rules": {"color-contrast": {"enabled": False}}}),
)
"""Width, colours, and what axe-core looks at: colours are those of the look before, or all that changed."""


def test_every_page_is_for_every_eye_and_width(page: "Page", world: World, tmp_path: Path) -> None:
    """No violation that axe-core calls serious or critical, in light, in dark and on a phone; nothing sticks out."""
    addresses = {
        "COMPARISON": f"/compare?job={world.small}&job={world.fine}&job={world.beaten}",
        "ENDPOINT": _endpoint(world),
    }
    for number, name in enumerate(PAGES):
        page.goto(world.service.url + addresses.get(name, name))
        page.evaluate(Axe().axe_script)
        for width, scheme, options in LOOKS:
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme="dark" if scheme == "dark" else "light", reduced_motion="reduce")
            page.screenshot(path=tmp_path / f"{number:02}-{width}-{scheme}.png", full_page=True)
            assert _violations(page, options) == [], f"{name} {width} {scheme}"
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name


def _endpoint(world: World) -> str:
    service = world.service
    with service.sessions.begin() as session:
        events = ["job.succeeded", "job.failed"]
        url = "https://hooks.example.com/lathe/production"
        return (
            "/settings/webhooks/" + webhooks.create_endpoint(session, service.settings.vault, OWNER, url, events)[0].id
        )


def _violations(page: "Page", options: dict[str, Any]) -> list[str]:
    ask = "options => axe.run({ resultTypes: ['violations'], ...options }).then(found => found.violations)"
    grave = (each for each in page.evaluate(ask, options) if each["impact"] in {"serious", "critical"})
    return [f"{each['id']}: {[node['html'][:200] for node in each['nodes']]}" for each in grave]
