"""The page of a job: what each tab shows, which verbs it offers, and that strangers see and do nothing."""

import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from itertools import product
from typing import get_args

import pytest
from dashboard_service import Service, report_of
from fastapi.testclient import TestClient
from job_scenes import GATED, expected, failed, finished, gated, running, succeeded, write
from sqlalchemy import func, text, update

from api.dashboard.job_verbs import ACTS
from api.dashboard.tabs import TABS
from api.errors import Conflict
from api.lifecycle import Verb
from api.main import create_app
from api.settings import Settings
from api.store import jobs, keys, logs, webhook_messages, webhooks
from api.store.models import ACTIVE, Job
from api.store.session import Sessions
from lathe.models import TERMINAL, JobStatus, PublishStatus, Scope
from optcore.events import Metric, Notice, RunPlanned, StageFinished, StageStarted
from optcore.recipe import recipe_from

pytestmark = pytest.mark.integration

OURS = {"Sec-Fetch-Site": "same-origin"}
HTMX = {**OURS, "HX-Request": "true"}
ATTACK = "<script>alert(1)</script><img src=x onerror=alert(1)>\" ' {{ 7*7 }} </pre><svg onload=alert(1)>"
STATUSES: tuple[JobStatus, ...] = get_args(JobStatus)
PUBLISHED: tuple[PublishStatus, ...] = get_args(PublishStatus)
VERBS: tuple[Verb, ...] = get_args(Verb)
PATHS = [room.path for room in TABS.values()]


class Outline(HTMLParser):
    """The parts of a page that the tests look at."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.forms: list[str] = []
        self.links: dict[str, str] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag == "form":
            self.forms.append(found.get("action") or "")
        if tag == "a":
            self._href = found.get("href") or ""
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"} and self.rows:
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] = " ".join([self.rows[-1][-1], *data.split()]).strip()
        if self.lasttag == "a":
            self.links.setdefault(data.strip(), getattr(self, "_href", ""))

    def row(self, name: str) -> list[str]:
        return next(row for row in self.rows if row and row[0].startswith(name))

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.tags if name == tag and wanted.items() <= found.items()]


@pytest.fixture(scope="module")
def module_settings(shared_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("job-page")
    return Settings(database_url=shared_database_url, data_dir=folder, secret_key="k" * 40, model_roots=(folder,))


@pytest.fixture(scope="module")
def service(module_settings: Settings) -> Iterator[Service]:
    from api.store.session import make_engine, make_sessions

    engine = make_engine(module_settings.database_url)
    yield Service("", module_settings, make_sessions(engine))
    engine.dispose()


@pytest.fixture(scope="module")
def app(module_settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(module_settings), follow_redirects=False) as client:
        yield client


SignIn = Callable[..., TestClient]


@pytest.fixture(scope="module")
def sign_in(app: TestClient, service: Service) -> SignIn:
    def make(project_id: str, scopes: list[Scope] | None = None) -> TestClient:
        with service.sessions.begin() as session:
            _, key = keys.create(session, project_id, **({"scopes": scopes} if scopes else {}))
        client = TestClient(app.app, follow_redirects=False)
        client.portal = app.portal  # one event loop, as in a server
        assert client.post("/sign-in", data={"key": key}, headers=OURS).status_code == 303
        return client

    return make


@pytest.fixture(scope="module")
def reader(sign_in: SignIn) -> TestClient:
    return sign_in("acme")


@pytest.fixture(scope="module")
def stranger(sign_in: SignIn) -> TestClient:
    return sign_in("other")


@pytest.fixture(scope="module")
def done(service: Service) -> str:
    """A job that succeeded."""
    return succeeded(service)


@pytest.fixture(scope="module")
def broken(service: Service) -> str:
    """A job that failed."""
    return failed(service)


def _look(client: TestClient, path: str) -> Outline:
    answer = client.get(path)
    assert answer.status_code == 200, path
    return Outline(answer.text)


def _queued(service: Service) -> str:
    return service.submit("acme", gated())


def _force(sessions: Sessions, job_id: str, status: str, publish: str = "not_requested") -> None:
    held = status in ACTIVE
    values = {
        "status": status,
        "publish_status": publish,
        "publish_to": {"repo_id": "me/x", "private": True, "credential": "default"},
        "worker_id": "w" if held else None,
        "lease_until": func.now() if held else None,
        "finished_at": func.now() if status in TERMINAL else None,
    }
    with sessions.begin() as session:
        session.execute(update(Job).where(Job.id == job_id).values(**values))


STATES = [(status, "not_requested") for status in STATUSES] + [("succeeded", each) for each in PUBLISHED[1:]]


@pytest.mark.parametrize(("status", "publish"), STATES, ids=["-".join(state) for state in STATES])
def test_what_is_offered_is_what_can_be_done(
    service: Service, reader: TestClient, status: JobStatus, publish: PublishStatus
) -> None:
    """Each verb is tried on the state machine: it is on the page exactly where it would change something."""
    job_id = _queued(service)
    _force(service.sessions, job_id, status, publish)
    found = _look(reader, f"/jobs/{job_id}")
    offered = {verb for verb in VERBS if f"/jobs/{job_id}/{verb}" in found.forms}
    able = set()
    for verb in VERBS:
        with service.sessions() as session:  # rolled back
            before = jobs.get(session, "acme", job_id).last_seq
            try:
                ACTS[verb](session, "acme", job_id)
            except Conflict:
                continue
            left = jobs.find(session, job_id)
            if left is None or left.last_seq > before:
                able.add(verb)
    # A first push of a job that was never to be published needs a place, which the page does not ask for.
    assert offered == able - ({"publish"} if publish == "not_requested" else set())


def test_a_form_without_a_script_does_each_verb_and_comes_back(
    service: Service, reader: TestClient, sessions: Sessions
) -> None:
    job_id = _queued(service)
    for verb, status in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled"), ("retry", "queued")):
        answer = reader.post(f"/jobs/{job_id}/{verb}", headers=OURS)
        assert (answer.status_code, answer.headers["location"]) == (303, f"/jobs/{job_id}")
        with service.sessions() as session:
            assert jobs.get(session, "acme", job_id).status == status
    reader.post(f"/jobs/{job_id}/cancel", headers=OURS)
    assert reader.post(f"/jobs/{job_id}/delete", headers=OURS).headers["location"] == "/"
    assert reader.get(f"/jobs/{job_id}").status_code == 404
    with service.sessions() as session:
        told = session.execute(text("SELECT action FROM audit_log WHERE target = :id ORDER BY id"), {"id": job_id})
        verbs = ["pause", "resume", "cancel", "retry", "cancel", "delete"]
        assert [row[0] for row in told if row[0] != "job.create"][-6:] == [f"job.{verb}" for verb in verbs]


def test_a_push_that_failed_is_asked_for_again(service: Service, reader: TestClient) -> None:
    job_id = _queued(service)
    _force(service.sessions, job_id, "succeeded", "failed")
    assert reader.post(f"/jobs/{job_id}/publish", headers=HTMX).headers["hx-redirect"] == f"/jobs/{job_id}"
    with service.sessions() as session:
        assert jobs.get(session, "acme", job_id).publish_status == "pending"


def test_a_conflict_is_a_message_on_the_page(service: Service, reader: TestClient, done: str) -> None:
    whole = reader.post(f"/jobs/{done}/cancel", headers=OURS)
    assert whole.status_code == 409
    assert "Not done: the job has succeeded already." in whole.text
    assert whole.text.count("<h1>") == 1
    part = reader.post(f"/jobs/{done}/pause", headers=HTMX)
    assert part.status_code == 409
    assert "<html" not in part.text
    assert 'role="alert"' in part.text


def test_nobody_else_sees_or_does_anything(service: Service, stranger: TestClient, done: str) -> None:
    shown = [*PATHS, "/logs/live", "/logs.txt", "/live?tab=plots", "/recipe.yaml", "/report", "/artifacts/config.json"]
    assert {path: stranger.get(f"/jobs/{done}{path}").status_code for path in shown} == dict.fromkeys(shown, 404)
    message = _message(service, done)
    posts = [f"/{verb}" for verb in VERBS] + [f"/deliveries/{message}/redeliver"]
    assert {path: stranger.post(f"/jobs/{done}{path}", headers=OURS).status_code for path in posts} == dict.fromkeys(
        posts, 404
    )


FOREIGN: list[dict[str, str]] = [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.example"}, {}]


def test_another_site_does_nothing(service: Service, reader: TestClient) -> None:
    job_id = _queued(service)
    message = _message(service, job_id)
    before = reader.get(f"/jobs/{job_id}").text.count("<li")
    for verb, headers in product([*VERBS, f"deliveries/{message}/redeliver"], FOREIGN):
        assert reader.post(f"/jobs/{job_id}/{verb}", headers=headers).status_code == 403
    assert reader.get(f"/jobs/{job_id}").text.count("<li") == before


def test_a_key_that_may_only_read_is_offered_nothing(service: Service, sign_in: SignIn) -> None:
    job_id = _queued(service)
    weak = sign_in("acme", ["jobs:read"])
    assert [form for form in _look(weak, f"/jobs/{job_id}").forms if job_id in form] == []
    assert weak.post(f"/jobs/{job_id}/cancel", headers=OURS).status_code == 403
    message = _message(service, job_id)
    hidden = weak.get(f"/jobs/{job_id}/deliveries").text
    assert "hooks.example" not in hidden
    assert message not in hidden
    assert weak.post(f"/jobs/{job_id}/deliveries/{message}/redeliver", headers=OURS).status_code == 403


def test_every_tab_is_a_page_of_its_own_and_names_everything(reader: TestClient, done: str) -> None:
    for path in PATHS:
        answer = reader.get(f"/jobs/{done}{path}")
        found = Outline(answer.text)
        assert [each["href"] for each in found.all("a", **{"aria-current": "page"})] == [f"/jobs/{done}{path}"]
        assert answer.text.count("<h1>") == 1
        assert not re.search(r"<script(?![^>]*\bsrc=)|\sstyle=|\son\w+=", answer.text), path
        ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        named = {name for _, each in found.tags for name in (each.get("aria-labelledby") or "").split()}
        assert named <= set(ids)
        fields = [each for tag in ("input", "select") for each in found.all(tag)]
        shown = [each for each in fields if each.get("type") != "hidden"]
        assert {each["id"] for each in shown} <= {each.get("for") for each in found.all("label")}


def test_a_script_gets_the_part_that_changes(reader: TestClient, done: str) -> None:
    part = reader.get(f"/jobs/{done}/deliveries", headers={"HX-Request": "true"}).text
    assert "<html" not in part
    assert "<h1>" in part


def test_the_stages_are_drawn_over_time(service: Service, reader: TestClient) -> None:
    claim = running(service)
    found = _look(reader, f"/jobs/{claim.job_id}")
    labels = [each["aria-label"] or "" for each in found.all("svg", role="img")]
    assert re.match(r"Job: queued for .+, running for .+, queued for .+, running for .+", labels[0])
    assert labels[1].startswith("0-fetch: succeeded for")
    assert "cached for" in labels[1]
    assert re.match(r"1-ptq: lost for .+, succeeded for .+", labels[2])
    assert labels[-1] == "4-evaluate: not begun"
    assert found.row("1-ptq")[3:] == ["41 s expected 38 s", "3.1 GB expected 3 GB"]
    assert found.row("3-export")[3:] == ["expected 5 s", "expected 3 GB"]
    assert found.row("Job")[1] == "2 attempts"
    page = reader.get(f"/jobs/{claim.job_id}").text
    assert re.search(r"about .+ left</span>", page), "the stages to come were all estimated"
    assert "Expected 6 min 15 s for 8 stages, with 3 GB at the peak" in page


def test_a_gpu_has_a_column_of_its_own_where_one_is_used(service: Service, reader: TestClient) -> None:
    claim = service.claim(_queued(service))
    foreseen = expected({"1-ptq": 38, "2-export": 5})
    on_gpu = tuple(stage.model_copy(update={"gpu_memory_bytes": 4 * 10**9}) for stage in foreseen.stages[:1])
    service.record(claim, RunPlanned(stages=("1-ptq", "2-export")), foreseen)
    assert "GPU memory" not in reader.get(f"/jobs/{claim.job_id}").text
    ended = StageFinished(
        stage="1-ptq", key="k", cached=False, seconds=41, peak_memory_bytes=10**9, peak_gpu_memory_bytes=5 * 10**9
    )
    service.record(claim, foreseen.model_copy(update={"stages": on_gpu}), StageStarted(stage="1-ptq", key="k"), ended)
    found = _look(reader, f"/jobs/{claim.job_id}")
    assert found.row("1-ptq")[4:] == ["1 GB expected 3 GB", "5 GB expected 4 GB"]
    assert len(found.row("2-export")) == len(found.row("Job")) == 6
    stages = reader.get(f"/v1/jobs/{claim.job_id}", headers={"Authorization": f"Bearer {service.key('acme')}"}).json()[
        "stages"
    ]
    assert [stage["peak_gpu_memory_bytes"] for stage in stages] == [5 * 10**9, None]


def test_gates_and_worst_layers_are_on_the_page(reader: TestClient, done: str) -> None:
    found = _look(reader, f"/jobs/{done}")
    assert found.row("FP8 W8A8")[1:4] == ["KL to the source", "0.0121 nats/token", "at most 0.05 nats/token"]
    assert "missed" in found.row("NVFP4 W4A4")[4]
    assert found.row("layer 7") == ["layer 7", "0.0345"]


def test_the_plots_tab_has_each_curve_as_picture_and_as_table(reader: TestClient, done: str) -> None:
    found = _look(reader, f"/jobs/{done}/plots")
    pictures = [each["aria-label"] or "" for each in found.all("div", role="img")]
    assert [each.partition(".")[0] for each in pictures] == [
        "Loss of 2-qad",
        "Learning rate of 2-qad",
        "Survival of drafted tokens",
        "Error by layer",
    ]
    assert found.row("validation kl")[1].endswith("step 360")
    assert found.row("2-qad")[-1] == "5.4 GB"


def test_hostile_words_are_words_on_every_tab(service: Service, reader: TestClient) -> None:
    recipe = recipe_from({**GATED, "name": ATTACK, "metadata": {ATTACK: ATTACK}})
    claim = service.claim(service.submit("acme", recipe))
    measured = [Metric(stage=ATTACK, name=ATTACK, value=value, step=step) for step, value in enumerate((1.0, 2.0))]
    service.record(
        claim, RunPlanned(stages=(ATTACK,)), *finished(ATTACK), Notice(stage=ATTACK, message=ATTACK), *measured
    )
    write(service, claim, f"{ATTACK}\n\x1b]0;title\x07\x1b[2J")
    service.finish(claim, report_of(recipe, ATTACK), more=(f"{ATTACK.replace('/', '')}.txt",))
    for path in PATHS:
        shown = reader.get(f"/jobs/{claim.job_id}{path}").text
        found = Outline(shown)
        assert not [tag for tag, attributes in found.tags if "onerror" in attributes or "onload" in attributes], path
        assert all(each.get("src", "").startswith("/static/") for each in found.all("script")), path  # type: ignore[union-attr]
        assert [each["src"] for each in found.all("img")] == ["/static/icon.svg"], path
        assert "\x1b" not in shown
    assert reader.get(f"/jobs/{claim.job_id}/logs", params={"stage": ATTACK}).status_code == 200


def test_a_failed_job_opens_with_its_failure_and_the_end_of_its_log(reader: TestClient, broken: str) -> None:
    shown = reader.get(f"/jobs/{broken}").text
    assert shown.index("What went wrong") < shown.index("the very last line") < shown.index('id="stages-title"')
    assert "torch.OutOfMemoryError: tried" in shown
    assert "layer 0:" not in shown
    assert f'href="/new?like={broken}"' in shown


def test_a_log_of_ten_megabytes_comes_in_pages_and_whole(service: Service, reader: TestClient) -> None:
    claim = service.claim(_queued(service))
    for part in range(40):  # a piece may be as large as an engine can write in a second
        write(service, claim, "".join(f"{part:02d} {line:04d} {'x' * 120}\n" for line in range(2048)))
    path = f"/jobs/{claim.job_id}/logs"
    last = reader.get(path).text
    assert len(last) < 600_000
    assert "39 2047" in last
    assert "37 0000" not in last
    assert 'data-after="40"' in last
    older = re.search(r'href="([^"]+before=\d+)"', last)
    assert older is not None
    page = reader.get(older.group(1).replace("&amp;", "&")).text
    assert "39 0000" not in page
    assert "38 2047" in page
    assert "data-live" not in page
    whole = reader.get(f"/jobs/{claim.job_id}/logs.txt")
    assert whole.headers["content-disposition"] == f'attachment; filename="{claim.job_id}.log.txt"'
    assert len(whole.content) == 40 * 2048 * 129
    assert whole.text.endswith("39 2047 " + "x" * 120 + "\n")


def test_a_log_is_read_by_attempt_and_by_stage(service: Service, reader: TestClient) -> None:
    claim = running(service)
    path = f"/jobs/{claim.job_id}/logs.txt"
    assert reader.get(path, params={"attempt": "1"}).text == "loading Qwen/Qwen3-0.6B\ncalibrating layer 0\n"
    assert reader.get(path, params={"attempt": "2"}).text.startswith("step 1:")
    assert reader.get(path, params={"attempt": "3"}).text == ""
    assert "step 259" in reader.get(path, params={"stage": "2-qad"}).text
    assert reader.get(path, params={"stage": "3-export"}).text == ""
    assert reader.get(f"/jobs/{claim.job_id}/logs", params={"attempt": "x"}).status_code == 400


def test_a_page_of_the_log_is_at_least_one_piece(service: Service) -> None:
    claim = service.claim(_queued(service))
    for piece in ("first", "second", "x" * 50):
        write(service, claim, piece)
    with service.sessions() as session:
        rows, more = logs.before(session, claim.job_id, None, 10)
        assert ([row.seq for row in rows], more) == ([3], True)
        rows, more = logs.before(session, claim.job_id, 3, 10)
        assert ([row.text for row in rows], more) == (["first", "second"], False)
        assert logs.before(session, claim.job_id, 1, 10) == ([], False)


def test_the_log_is_followed_as_it_is_written(service: Service, reader: TestClient, done: str) -> None:
    with reader.stream("GET", f"/jobs/{done}/logs/live?attempt=2") as stream:
        told = "".join(stream.iter_text())
    assert '"text":"step 1: loss' in told
    assert "calibrating layer 0" not in told
    assert told.endswith("event: end\ndata: {}\n\n")


def test_the_recipe_marks_what_was_pinned_and_lineage_says_where_it_comes_from(reader: TestClient, done: str) -> None:
    shown = reader.get(f"/jobs/{done}/recipe").text
    assert re.findall(r"<mark>\s*(.+?)</mark>", shown) == ["revision: c1899de289a04d12100db370d81485cdf75e47ca"]
    own = shown[shown.index('id="own-title"') :]
    assert "steps: 400" in own
    assert "technique: qad" in own
    assert "sequence_length: 512" in own
    assert "null" not in own[: own.index("Lineage")]
    assert "signed, <a" in own
    assert "<strong>Qwen/Qwen3-0.6B</strong>" in own
    assert "AMD EPYC" in own


def _message(service: Service, job_id: str) -> str:
    with service.sessions.begin() as session:
        endpoint, _ = webhooks.create_endpoint(
            session, service.settings.vault, "acme", "https://hooks.example/secret-token", ["job.failed"]
        )
        message = webhook_messages.add(session, endpoint.id, "job.failed", {}, job_id)
        session.execute(text("UPDATE webhook_messages SET status = 'failed' WHERE id = :id"), {"id": message.id})
        return message.id


def test_a_message_is_sent_again(service: Service, reader: TestClient) -> None:
    job_id = _queued(service)
    message = _message(service, job_id)
    shown = reader.get(f"/jobs/{job_id}/deliveries").text
    assert "hooks.example" in shown
    assert "secret-token" not in shown, "an address may hold a secret"
    assert 'id="poll"' not in shown
    path = f"/jobs/{job_id}/deliveries/{message}/redeliver"
    assert reader.post(path, headers=OURS).headers["location"] == f"/jobs/{job_id}/deliveries"
    part = reader.post(path, headers=HTMX).text
    assert 'id="poll"' in part, "what is on its way is looked after"
    other = _queued(service)
    assert reader.post(f"/jobs/{other}/deliveries/{message}/redeliver", headers=OURS).status_code == 404
    with service.sessions.begin() as session:
        endpoint_id = webhook_messages.get(session, "acme", message).endpoint_id
        webhooks.disable_endpoint(session, endpoint_id, "owner")
    refused = reader.post(path, headers=OURS)
    assert refused.status_code == 409
    assert "the webhook endpoint is disabled" in refused.text


def test_signing_in_leads_back_to_the_tab(app: TestClient, service: Service, done: str) -> None:
    anonymous = TestClient(app.app, follow_redirects=False)
    assert anonymous.get(f"/jobs/{done}/logs").headers["location"] == f"/sign-in?next=/jobs/{done}/logs"
    key = service.key("acme")
    answer = anonymous.post("/sign-in", data={"key": key, "next": f"/jobs/{done}/logs"}, headers=OURS)
    assert answer.headers["location"] == f"/jobs/{done}/logs"
