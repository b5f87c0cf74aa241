"""What Prometheus scrapes, and that the dashboard and the alerts ask for nothing else."""

import json
import os
import re
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

import httpx
import pytest
import yaml
from dashboard_service import serving
from fastapi import FastAPI
from fastapi.testclient import TestClient
from fixtures.waiting import until
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from sqlalchemy import text

from api import lifecycle
from api.main import create_app
from api.monitoring import service as monitoring
from api.settings import Settings
from api.store import tallies, webhooks, workers
from api.store.models import Host
from api.store.session import Sessions
from optcore.events import StageFinished, StageStarted
from optcore.recipe import Recipe

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
OWNER = "acme"
HERE = "http://127.0.0.1"
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(page: str) -> Samples:
    families = text_string_to_metric_families(page)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def value(found: Samples, name: str, **labels: str) -> float:
    return found[name, tuple(sorted(labels.items()))]


@pytest.fixture
def local(client: TestClient) -> TestClient:
    """A client on the service's own machine."""
    here = TestClient(client.app, client=("127.0.0.1", 50000), base_url=HERE)
    here.portal = client.portal
    return here


def scrape(local: TestClient) -> Samples:
    answer = local.get("/metrics")
    assert answer.status_code == 200, answer.text
    return samples(answer.text)


def test_requests_are_counted_by_the_template_of_their_route(
    client: TestClient, local: TestClient, job_id: str
) -> None:
    client.get(f"/v1/jobs/{job_id}")
    client.get("/v1/jobs/job_" + "0" * 26)
    client.get("/nowhere/at/all")
    client.request("BREW", "/v1/jobs")
    client.get("/static/lathe.css")
    client.get("/sign-in")
    client.post("/v1/jobs", json={})
    found = scrape(local)
    template = {"method": "GET", "route": "/v1/jobs/{job_id}"}
    assert value(found, "lathe_http_requests_total", **template, status="200") == 1
    assert value(found, "lathe_http_requests_total", **template, status="404") == 1
    assert value(found, "lathe_http_request_duration_seconds_count", **template) == 2
    assert value(found, "lathe_http_requests_total", method="POST", route="/v1/jobs", status="422") == 1
    routes = {dict(labels)["route"] for name, labels in found if name == "lathe_http_requests_total"}
    assert routes == {"/v1/jobs/{job_id}", "/v1/jobs", "/sign-in", "mounted", "unmatched"}
    assert {dict(labels)["method"] for name, labels in found if name == "lathe_http_requests_total"} == {
        *("GET", "POST", "other")
    }
    assert not [labels for _, labels in found if job_id in str(labels)]


def test_streams_are_counted_while_they_are_open(settings: Settings, sessions: Sessions, job_id: str) -> None:
    with serving(settings, sessions) as service:
        headers = {"Authorization": f"Bearer {service.key(OWNER)}", "Accept": "text/event-stream"}

        def streams() -> float:
            return value(samples(httpx.get(f"{service.url}/metrics").text), "lathe_event_streams")

        with httpx.stream("GET", f"{service.url}/v1/jobs/{job_id}/events", headers=headers) as stream:
            lines = stream.iter_lines()  # held: without it the stream is closed
            next(lines)
            assert streams() == 1
            found = samples(httpx.get(f"{service.url}/metrics").text)
            route = {"method": "GET", "route": "/v1/jobs/{job_id}/events"}
            assert value(found, "lathe_http_requests_total", **route, status="200") == 1
        until(lambda: streams() == 0, "the stream to be closed")


def test_a_refusal_for_the_rate_is_counted(settings: Settings, client: TestClient, sessions: Sessions) -> None:
    narrow = settings.model_copy(update={"rate_limit": "1/minute"})
    with TestClient(create_app(narrow), HERE, client=("127.0.0.1", 1), headers=client.headers) as limited:
        assert [limited.get("/v1/jobs").status_code for _ in range(3)] == [200, 429, 429]
        assert value(samples(limited.get("/metrics").text), "lathe_rate_limit_refusals_total") == 2


@cache
def guarded_app(token: str) -> FastAPI:
    """Nobody has to answer behind it."""
    url, folder = "postgresql://nobody@127.0.0.1:9/none", Path("nowhere")
    return create_app(
        Settings(database_url=url, data_dir=folder, secret_key=SecretStr("k" * 40), metrics_token=SecretStr(token))
    )


@pytest.mark.parametrize(
    ("token", "peer", "headers", "status"),
    [
        ("", "127.0.0.1", {}, 200),
        ("", "::1", {}, 200),
        ("", "10.0.0.8", {}, 403),
        ("", "127.0.0.1", {"X-Forwarded-For": "10.0.0.8"}, 403),
        ("", "127.0.0.1", {"Forwarded": "for=10.0.0.8"}, 403),
        ("", "127.0.0.1", {"X-Forwarded-Proto": "https"}, 403),
        ("", "127.0.0.1", {"Via": "1.1 proxy"}, 403),
        ("", "127.0.0.1", {"CF-Connecting-IP": "10.0.0.8"}, 403),
        ("", "127.0.0.1", {"Host": "lathe.example"}, 403),
        ("", "127.0.0.1", {"Host": ""}, 403),
        ("", "127.0.0.1", {"Host": "127.0.0.1:8321"}, 200),
        ("", "127.0.0.1", {"Host": "[::1]:8321"}, 200),
        ("s3cret", "10.0.0.8", {"Authorization": "Bearer s3cret"}, 200),
        ("s3cret", "127.0.0.1", {}, 401),
        ("s3cret", "10.0.0.8", {"Authorization": "Bearer s3cre"}, 401),
        ("s3cret", "10.0.0.8", {"Authorization": "Bearer s3cr\u00e9t".encode()}, 401),
    ],
)
def test_metrics_are_read_by_this_machine_or_with_the_token(
    token: str, peer: str, headers: dict[str, str], status: int
) -> None:
    here = TestClient(guarded_app(token), HERE, client=(peer, 50000))
    assert here.get("/metrics", headers=headers).status_code == status


def test_a_proxy_that_says_nothing_of_itself_is_known_by_the_old_protocol(
    settings: Settings, sessions: Sessions
) -> None:
    with serving(settings, sessions) as service:
        url = httpx.URL(service.url)
        with socket.create_connection((url.host, url.port or 80)) as line:
            line.sendall(b"GET /metrics HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
            assert b" 403 " in line.recv(100)


def test_metrics_are_no_part_of_the_api(local: TestClient) -> None:
    assert "/metrics" not in local.get("/openapi.json").json()["paths"]


def test_the_database_is_told_of(
    local: TestClient, settings: Settings, sessions: Sessions, recipe: Recipe, job_id: str
) -> None:
    with sessions.begin() as session:
        claim = lifecycle.claim(session, lifecycle.submit(session, OWNER, recipe).id, "w1")
        assert claim is not None
        lifecycle.record(session, claim, [StageStarted(stage="1-ptq", key="k"), _finished("1-ptq", 40.0)])
        lifecycle.record(session, claim, [_finished("0-fetch", 0.0, cached=True), _finished("1-p<q", 1.0)])
        lifecycle.finish(session, claim, "d", [lifecycle.ArtifactFile("a.bin", 77, "0" * 64)])
        webhooks.create_endpoint(session, settings.vault, OWNER, "https://a.example/", ["job.queued"])
        lifecycle.submit(session, OWNER, recipe.model_copy(update={"priority": 3}))
        workers.beat(session, "w1", workers.Capacity("host-1", "cuda", 4))
        workers.beat(session, "w2", workers.Capacity("host-1", "cuda", 4), unfit="disk full")
        session.add(Host(name="host-2"))
        session.flush()
        session.execute(text("UPDATE hosts SET quarantined_at = now()"))
        session.execute(text("UPDATE jobs SET queued_at = now() - interval '90 seconds' WHERE priority = 3"))
        session.execute(text("UPDATE outbox SET available_at = now() - interval '50 seconds' WHERE topic = 'run_job'"))
    with sessions.begin() as session:
        tallies.fold(session, lag_seconds=0)
    found = scrape(local)
    assert value(found, "lathe_database_up") == 1
    assert value(found, "lathe_jobs", status="queued", priority="0", device="any") == 1
    assert value(found, "lathe_queue_oldest_seconds", priority="3", device="any") == pytest.approx(90, abs=5)
    assert value(found, "lathe_outbox_oldest_seconds") == pytest.approx(50, abs=5)
    assert value(found, "lathe_outbox_messages") == 4
    assert value(found, "lathe_webhook_messages_pending") == 1
    assert value(found, "lathe_webhook_endpoints", state="enabled") == 1
    assert value(found, "lathe_workers", device="cuda", state="ready") == 1
    assert value(found, "lathe_workers", device="cuda", state="unfit") == 1
    assert value(found, "lathe_worker_gpus", state="ready") == 4
    assert value(found, "lathe_host_quarantined", host="host-2") == 1
    assert value(found, "lathe_reconciler_up") == 0
    assert value(found, "lathe_artifact_bytes") == 77
    assert value(found, "lathe_jobs_submitted_total", device="any") == 3
    assert value(found, "lathe_jobs_finished_total", status="succeeded") == 1
    assert value(found, "lathe_attempts_total", state="succeeded", failure="") == 1
    assert value(found, "lathe_stages_total", technique="fetch", status="cached") == 1
    assert value(found, "lathe_stages_total", technique="p", status="succeeded") == 1
    assert value(found, "lathe_stage_seconds_bucket", technique="ptq", le="15.0") == 0
    assert value(found, "lathe_stage_seconds_bucket", technique="ptq", le="60.0") == 1
    assert value(found, "lathe_stage_seconds_bucket", technique="ptq", le="+Inf") == 1
    assert value(found, "lathe_stage_seconds_sum", technique="ptq") == 40


def _finished(stage: str, seconds: float, *, cached: bool = False) -> StageFinished:
    return StageFinished(stage=stage, key="k", cached=cached, seconds=seconds, peak_memory_bytes=1)


def test_what_is_tallied_is_counted_once_and_outlives_its_rows(sessions: Sessions, recipe: Recipe, job_id: str) -> None:
    def fold(lag_seconds: float = 0) -> dict[str, int]:
        with sessions.begin() as session:
            tallies.fold(session, lag_seconds)
            return {tally.kind: tally.count for tally in tallies.read(session)}

    assert fold(lag_seconds=30) == {}, "what is young may have neighbours that are not committed yet"
    assert fold() == {"submission": 1}
    assert fold() == {"submission": 1}
    with sessions.begin() as session:
        lifecycle.request_cancel(session, OWNER, job_id)
        lifecycle.submit(session, OWNER, recipe)
    assert fold() == {"submission": 2, "job": 1}
    with sessions.begin() as session:
        lifecycle.delete(session, OWNER, job_id)
    assert fold() == {"submission": 2, "job": 1}


def test_without_the_database_the_process_still_tells(settings: Settings) -> None:
    lost = settings.model_copy(update={"database_url": "postgresql://nobody@127.0.0.1:9/none"})
    found = samples(TestClient(create_app(lost), HERE, client=("127.0.0.1", 1)).get("/metrics").text)
    assert value(found, "lathe_database_up") == 0
    assert ("process_resident_memory_bytes", ()) in found


def test_many_scrapes_are_one_look(
    local: TestClient, sessions: Sessions, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = scrape(local)
    with sessions.begin() as session:
        lifecycle.submit(session, OWNER, recipe)
    assert value(scrape(local), "lathe_outbox_messages") == value(before, "lathe_outbox_messages") == 0
    monkeypatch.setattr(monitoring.time, "monotonic", lambda start=monitoring.time.monotonic: start() + 6)
    assert value(scrape(local), "lathe_outbox_messages") == 1


def test_the_dashboard_and_the_alerts_name_metrics_that_are_there(local: TestClient) -> None:
    """By the families that a service tells of, whether or not something is in them."""
    dashboard = json.loads((ROOT / "docker/monitoring/lathe.json").read_text())
    rules = yaml.safe_load((ROOT / "docker/monitoring/alerts.yaml").read_text())["groups"][0]["rules"]
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]] + [rule["expr"] for rule in rules]
    asked = {name for query in queries for name in re.findall(r"\blathe_\w+", query)}
    page = local.get("/metrics").text
    assert asked <= _names(page), asked - _names(page)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in panels)
    assert all(rule["alert"] and rule["annotations"]["summary"] for rule in rules)


def test_the_page_of_the_docs_lists_every_metric(local: TestClient) -> None:
    page = local.get("/metrics").text
    told = {name for name in re.findall(r"^# TYPE (lathe_\w+)", page, re.M) if not name.endswith("_created")}
    documented = set(re.findall(r"`(lathe_\w+)`", (ROOT / "docs/observability.md").read_text()))
    assert told == documented


def _names(page: str) -> set[str]:
    """Of all samples that the families on a page can have."""
    names = set()
    for name, type in re.findall(r"^# TYPE (\w+) (\w+)$", page, re.M):
        names |= {name} | ({f"{name}_{part}" for part in ("bucket", "sum", "count")} if type == "histogram" else set())
    return names


def test_processes_that_share_a_port_add_up(tmp_path: Path) -> None:
    """As those of `uvicorn --workers 2` do: the library decides by the variable when it is imported."""
    script = """
import os
from prometheus_client import generate_latest
from api.monitoring.requests import RequestMetrics
child = os.fork()
metrics = RequestMetrics()
metrics.answered({"method": "GET"}, 200, 0.1)
metrics.streams.inc()
if child:
    os.waitpid(child, 0)
    print(generate_latest(metrics.registry).decode())
"""
    environment = dict(os.environ) | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    page = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    found = samples(page.stdout)
    assert value(found, "lathe_http_requests_total", method="GET", route="unmatched", status="200") == 2
    assert value(found, "lathe_event_streams") == 2
