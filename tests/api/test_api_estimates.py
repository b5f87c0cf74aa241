"""What a job would take, over REST: on the workers that are there, with prices, with what is in the way."""

from pathlib import Path
from typing import Any

import pytest
from dashboard_reader import dashboard, signed_in
from fastapi.testclient import TestClient
from fixtures.hub import OWNER_TOKEN, HubPeer
from sqlalchemy import func, text

import optcore.sources.client
from api import lifecycle
from api.estimates import estimator
from api.main import create_app
from api.settings import Settings
from api.store import credentials, keys, stage_costs, workers
from api.store.models import Host
from api.store.session import Sessions
from api.store.workers import Capacity
from lathe.estimate_models import Estimate
from optcore.estimate.document import Machine, StageCostSeen
from optcore.estimate.estimate import estimate

pytestmark = pytest.mark.integration
OWNER = "acme"
GIB = 1024**3
CPU = {"host_memory_bytes": 16 * GIB, "cores": 2}


@pytest.fixture
def model(settings: Settings, stdlib_model: Path) -> str:
    """Our own model, below a folder that may be read."""
    (settings.model_roots[0] / "small").symlink_to(stdlib_model)
    return str(settings.model_roots[0] / "small")


@pytest.fixture
def settings(settings: Settings, stdlib_model: Path) -> Settings:
    roots = (*settings.model_roots, stdlib_model.parent)
    return settings.model_copy(update={"model_roots": roots, "prices": {"cpu": 0.36, "H200": 3.6}})


@pytest.fixture
def on_the_hub(hub: HubPeer, monkeypatch: pytest.MonkeyPatch, stdlib_model: Path) -> HubPeer:
    monkeypatch.setattr(optcore.sources.client, "WAITS_seconds", (0.01,))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    hub.put_folder("me/secret", stdlib_model, private=True)
    return hub


def _recipe(**changed: Any) -> dict[str, Any]:
    calibration = {"dataset": "python-stdlib", "samples": 16, "sequence_length": 256}
    return {"calibration": calibration, "chain": [{"technique": "ptq", "scheme": "nvfp4"}], **changed}


def _worker(sessions: Sessions, name: str, *, disk: int = 100 * GIB, **changed: Any) -> None:
    capacity = Capacity(**{"host": name, "device": "cpu", **CPU, **changed})
    with sessions.begin() as session:
        workers.beat(session, name, capacity, disk_free_bytes=disk)


def _ask(client: TestClient, document: Any) -> Estimate:
    answer = client.post("/v1/jobs/estimate", json=document)
    assert answer.status_code == 200, answer.text
    return Estimate.model_validate_json(answer.content)


def test_a_job_is_foreseen_stage_by_stage(client: TestClient, sessions: Sessions, model: str) -> None:
    _worker(sessions, "small")
    found = _ask(client, _recipe(model={"path": model}))
    assert found.allowed_to_proceed
    assert found.problems == ()
    assert [stage.stage for stage in found.stages] == ["0-fetch", "1-ptq", "2-export", "3-evaluate"]
    assert found.source_bytes is not None
    assert 0 < found.results[0].weight_bytes < found.source_bytes / 2
    assert found.seconds_low < found.seconds < found.seconds_high
    assert found.cost == pytest.approx(0.36 * found.seconds / 3600)
    assert found.currency == "USD"
    assert [(fit.worker_id, fit.fits, fit.cost) for fit in found.workers] == [("small", True, found.cost)]
    assert found.learned_from == 0


def test_nothing_is_queued(client: TestClient, model: str) -> None:
    _ask(client, _recipe(model={"path": model}))
    assert client.get("/v1/jobs").json()["data"] == []


def test_without_a_worker_it_says_so_and_foresees_what_was_asked_for(client: TestClient, model: str) -> None:
    found = _ask(client, _recipe(model={"path": model}, hardware={"gpu_kind": "H200"}))
    assert found.allowed_to_proceed
    assert [(one.fatal, "no worker" in one.reason) for one in found.problems] == [(False, True)]
    assert found.machine.device == "cuda"
    assert found.gpu_memory_bytes > 0
    assert found.cost == pytest.approx(3.6 * found.seconds / 3600)


def test_a_worker_that_is_too_small_says_why(client: TestClient, sessions: Sessions, model: str) -> None:
    _worker(sessions, "tiny", host_memory_bytes=64 * 2**20)
    _worker(sessions, "roomy")
    found = _ask(client, _recipe(model={"path": model}))
    assert found.allowed_to_proceed
    assert [(fit.worker_id, fit.fits) for fit in found.workers] == [("roomy", True), ("tiny", False)]
    assert "memory" in found.workers[1].reasons[0]


def test_a_host_in_quarantine_is_not_counted_on(client: TestClient, sessions: Sessions, model: str) -> None:
    _worker(sessions, "cedar")
    _worker(sessions, "small", host_memory_bytes=64 * 2**20)
    with sessions.begin() as session:
        session.add(Host(name="cedar", quarantined_at=func.now()))
    found = _ask(client, _recipe(model={"path": model}))
    assert [(fit.worker_id, fit.fits) for fit in found.workers] == [("small", False)]
    assert not found.allowed_to_proceed, "no machine that gets work can run it"


def test_workers_that_differ_by_their_disks_are_reckoned_once(
    client: TestClient, sessions: Sessions, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reckoned = list[Machine]()

    def counting(*arguments: Any) -> Any:
        reckoned.append(arguments[2])
        return estimate(*arguments)

    monkeypatch.setattr(estimator, "estimate", counting)
    for number in range(3):
        _worker(sessions, f"w{number}", disk=(100 + number) * GIB)
    _worker(sessions, "full", disk=1)
    found = _ask(client, _recipe(model={"path": model}))
    assert len(reckoned) == 1
    assert [(fit.worker_id, fit.fits) for fit in found.workers][3] == ("full", False)
    assert "free" in found.workers[3].reasons[0]
    assert found.machine.disk_free_bytes in {(100 + number) * GIB for number in range(3)}


def test_an_impossible_job_is_refused_with_the_reason(client: TestClient, sessions: Sessions, model: str) -> None:
    _worker(sessions, "tiny", host_memory_bytes=64 * 2**20)
    found = _ask(client, _recipe(model={"path": model}))
    assert not found.allowed_to_proceed
    assert any(one.fatal and "memory" in one.reason and one.remedy for one in found.problems)
    wanted = _ask(client, _recipe(model={"path": model}, hardware={"gpu_kind": "H200"}))
    assert not wanted.allowed_to_proceed
    assert wanted.problems[0].pointer.startswith("/hardware")


def test_a_race_is_held_against_each_workers_disk(client: TestClient, sessions: Sessions, model: str) -> None:
    candidates = [[{"technique": "ptq", "scheme": scheme}] for scheme in ("int8", "int4", "int4_g32")]
    document = _recipe(model={"path": model}, chain=[], objective={"candidates": candidates})
    _worker(sessions, "tight", disk=10**6)
    refused = _ask(client, document)
    assert not refused.allowed_to_proceed
    assert {one.pointer for one in refused.problems if one.fatal} == {"/objective/candidates/1"}, "the smallest one"
    _worker(sessions, "roomy")
    found = _ask(client, document)
    assert found.allowed_to_proceed
    assert [(fit.worker_id, fit.fits) for fit in found.workers] == [("roomy", True), ("tight", False)]
    assert [each.candidate for each in found.results] == ["c01", "c02", "c03"]
    (size,) = found.sizes
    assert size.least_bytes < size.most_bytes


def test_models_that_candidates_name_are_looked_at(client: TestClient, on_the_hub: HubPeer, model: str) -> None:
    taught = {"technique": "distill", "steps": 5, "teacher": {"id": "me/no-such-model"}}
    candidates = [[{"technique": "ptq", "scheme": "int8"}], [taught, {"technique": "ptq", "scheme": "int8"}]]
    found = _ask(client, _recipe(model={"path": model}, chain=[], objective={"candidates": candidates}))
    assert not found.allowed_to_proceed
    assert found.problems[0].pointer.startswith("/objective/candidates/1/0/teacher")


@pytest.mark.parametrize(
    ("changed", "pointer"),
    [
        ({"chain": []}, "/chain"),
        ({"chain": [{"technique": "qad"}]}, "/chain/0"),
        ({"chain": [{"technique": "ptq", "scheme": "nvfp5"}]}, "/chain/0/scheme"),
        ({"model": {"path": "/etc"}}, "/model/path"),
        ({"publish": {"repo_id": "me/x", "credential": "none"}}, "/publish/credential"),
    ],
)
def test_what_would_be_refused_is_a_problem_with_its_place(
    client: TestClient, model: str, changed: dict[str, Any], pointer: str
) -> None:
    found = _ask(client, {**_recipe(model={"path": model}), **changed})
    assert not found.allowed_to_proceed
    assert found.problems[0].pointer == pointer
    assert found.stages == ()


def test_estimates_learn_from_finished_stages(
    client: TestClient, sessions: Sessions, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _worker(sessions, "small")
    before = _ask(client, _recipe(model={"path": model}))
    with sessions.begin() as session:
        for stage in before.stages * 5:
            took = {"raw_seconds": stage.raw_seconds, "seconds": 3 * stage.raw_seconds}
            size = {"raw_memory_bytes": stage.raw_memory_bytes, "memory_bytes": stage.raw_memory_bytes}
            stage_costs.remember(session, StageCostSeen(machine=before.machine.kind, kind=stage.kind, **took, **size))
    assert _ask(client, _recipe(model={"path": model})).learned_from == 0, "it is read once in a while"
    monkeypatch.setattr(estimator, "RATES_seconds", 0.0)
    after = _ask(client, _recipe(model={"path": model}))
    assert after.learned_from > 0
    assert after.seconds == pytest.approx(3 * before.seconds, rel=0.1)
    assert after.seconds_high / after.seconds < before.seconds_high / before.seconds


def _run_for(sessions: Sessions, job_id: str, hours: float, worker: Capacity) -> None:
    """An attempt that began so long ago, and is handed back now."""
    began = text("UPDATE attempts SET started_at = now() - make_interval(secs => :seconds) WHERE finished_at IS NULL")
    with sessions.begin() as session:
        claim = lifecycle.claim(session, job_id, "w1", worker)
        assert claim is not None
        session.execute(began, {"seconds": hours * 3600})
    with sessions.begin() as session:
        lifecycle.release(session, claim)


def test_a_job_says_what_its_attempts_cost_so_far(client: TestClient, sessions: Sessions, job_id: str) -> None:
    place = f"/v1/jobs/{job_id}"
    assert client.get(place).json()["cost"] is None, "it had no machine yet"
    _run_for(sessions, job_id, 1, Capacity("alder", "cuda", 2, "NVIDIA H200"))
    _run_for(sessions, job_id, 10, Capacity("birch", "cpu"))
    cost = client.get(place).json()["cost"]
    assert (cost["currency"], cost["amount"]) == ("USD", pytest.approx(2 * 3.6 + 10 * 0.36, rel=1e-3))
    _run_for(sessions, job_id, 1, Capacity("cedar", "cuda", 1, "NVIDIA L4"))
    assert client.get(place).json()["cost"] is None, "a part of the sum would be taken for the whole"


def test_a_jobs_page_says_what_it_costs_so_far(settings: Settings, sessions: Sessions, job_id: str) -> None:
    _run_for(sessions, job_id, 10, Capacity("birch", "cpu"))
    with dashboard(settings) as anonymous:
        shown = signed_in(anonymous, sessions).get(f"/jobs/{job_id}").text
    assert "Cost so far" in shown
    assert "3.60 USD" in shown


def test_a_service_without_prices_tells_no_cost(settings: Settings, sessions: Sessions, job_id: str) -> None:
    with sessions.begin() as session:
        _, key = keys.create(session, OWNER, scopes=("jobs:read",))
    _run_for(sessions, job_id, 1, Capacity("birch", "cpu"))
    app = create_app(settings.model_copy(update={"prices": {}}))
    with TestClient(app, headers={"Authorization": f"Bearer {key}"}) as reader:
        assert reader.get(f"/v1/jobs/{job_id}").json()["cost"] is None


def test_a_private_model_is_foreseen_with_the_projects_own_token(
    client: TestClient, stranger: TestClient, sessions: Sessions, settings: Settings, on_the_hub: HubPeer
) -> None:
    document = _recipe(model={"id": "me/secret"})
    refused = _ask(client, document)
    assert (refused.allowed_to_proceed, refused.problems[0].pointer) == (False, "/model/id")
    with sessions.begin() as session:
        credentials.put(session, settings.vault, OWNER, "default", OWNER_TOKEN)
    assert _ask(client, document).stages
    asked = len(on_the_hub.requests)
    assert _ask(client, document).stages
    assert len(on_the_hub.requests) == asked, "a form asks at every change"
    assert not _ask(stranger, document).allowed_to_proceed, "what one project may read another may not"


def test_a_hub_that_is_away_is_a_problem_that_may_pass(client: TestClient, on_the_hub: HubPeer) -> None:
    on_the_hub.fail("GET /api/models", 503, times=20)
    found = _ask(client, _recipe(model={"id": "me/secret"}))
    assert not found.allowed_to_proceed
    assert "did not answer" in found.problems[0].reason or "503" in found.problems[0].reason


def test_a_damaged_configuration_is_a_problem(client: TestClient, on_the_hub: HubPeer, stdlib_model: Path) -> None:
    weights = (stdlib_model / "model.safetensors").read_bytes()
    files = {"config.json": '{"head_dim": "abc"}', "tokenizer.json": "{}", "model.safetensors": weights}
    on_the_hub.put("me/odd", files)
    found = _ask(client, _recipe(model={"id": "me/odd"}))
    assert [(one.pointer, "head_dim" in one.reason) for one in found.problems] == [("/model", True)]


def test_who_may_only_read_is_refused(settings: Settings, sessions: Sessions, model: str) -> None:
    with sessions.begin() as session:
        _, key = keys.create(session, OWNER, scopes=("jobs:read",))
    with TestClient(create_app(settings), headers={"Authorization": f"Bearer {key}"}) as reader:
        assert reader.post("/v1/jobs/estimate", json=_recipe(model={"path": model})).status_code == 403


@pytest.mark.parametrize("body", [b"[1]", b'"x"', b"null"])
def test_a_body_that_is_no_recipe_is_a_problem(client: TestClient, body: bytes) -> None:
    answer = client.post("/v1/jobs/estimate", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    assert not answer.json()["allowed_to_proceed"]
