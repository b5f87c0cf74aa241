"""One trace and one id lead from a request to a stage: through the real API, relay, worker and supervisor."""

import gzip
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from fixtures.receiver import Receiver
from fixtures.waiting import until
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from worker_service import OWNER, Service

from api import tracing
from api.store import keys, webhooks
from lathe.local.server import free_port

pytestmark = pytest.mark.integration
TRACE, CALLER, REQUEST = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "from-the-caller-1"
RECIPE = {
    "model": {"path": "models/stdlib-5m"},
    "calibration": {"dataset": "python-stdlib"},
    "chain": [{"technique": "ptq", "scheme": "nvfp4"}],
}
ROOT = Path(__file__).parents[2]


class Collector(ThreadingHTTPServer):
    """Takes spans by OTLP over HTTP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[Any] = []

    def named(self, *starts: str) -> list[Any]:
        return [span for span in self.spans if span.name.startswith(starts)]


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        found = ExportTraceServiceRequest.FromString(body)
        self.server.spans += [
            span for resource in found.resource_spans for scope in resource.scope_spans for span in scope.spans
        ]
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def lines(log: str) -> list[dict[str, Any]]:
    """Each is JSON, but for Celery's greeting on standard output."""
    return [json.loads(line) for line in log[log.index("{") :].splitlines()]


def submit(port: int, key: str, recipe: dict[str, Any]) -> str:
    parent = {"traceparent": f"00-{TRACE}-{CALLER}-01", "X-Request-Id": REQUEST}
    headers = {"Authorization": f"Bearer {key}", **parent}
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/jobs", headers=headers, json=recipe)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def test_a_trace_and_the_logs_lead_from_the_request_to_the_stages(
    service: Service, collector: Collector, receiver: Receiver
) -> None:
    port = free_port()
    service.settings |= {"PORT": port, "MODEL_ROOTS": ROOT / "models", "TRUST_TRACEPARENT": "true"}
    service.environ |= {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    with service.sessions.begin() as session:
        key = keys.create(session, OWNER)[1]
        webhooks.create_endpoint(session, service.vault, OWNER, receiver.url, ["job.succeeded"])
    service.start("api", ["-m", "api"])
    service.start_relay()
    service.start_worker()
    until(lambda: "Uvicorn running" in service.log("api"), "the API", 30)
    job_id = submit(port, key, RECIPE | {"model": {"path": "stdlib-5m"}})
    service.await_status(job_id, "succeeded")
    until(lambda: collector.named("webhook"), "the last span")
    until(lambda: collector.named("attempt"), "the attempt's span")

    spans = {span.name: span for span in collector.spans if span.trace_id.hex() == TRACE}
    request, attempt = spans["POST /v1/jobs"], spans["attempt"]
    assert request.parent_span_id.hex() == CALLER
    assert attributes(request)["http.route"] == "/v1/jobs"
    assert attributes(request)["lathe.request_id"] == REQUEST
    assert {spans[name].parent_span_id for name in ("queue", "attempt", "webhook")} == {request.span_id}
    assert attributes(attempt) == attributes(attempt) | {
        "lathe.job_id": job_id,
        "lathe.epoch": 1,
        "lathe.request_id": REQUEST,
    }
    stages = [span for span in collector.named("stage ") if span.trace_id.hex() == TRACE]
    assert [span.name for span in stages] == ["stage 0-load", "stage 1-ptq", "stage 2-export"]
    assert {span.parent_span_id for span in stages} == {attempt.span_id}
    assert attempt.start_time_unix_nano <= stages[0].start_time_unix_nano <= stages[0].end_time_unix_nano
    assert spans["queue"].end_time_unix_nano <= stages[0].start_time_unix_nano

    assert service.log("api").startswith("{")
    api = lines(service.log("api"))
    (told,) = [line for line in api if line.get("route") == "/v1/jobs"]
    assert (told["request_id"], told["trace_id"], told["status"]) == (REQUEST, TRACE, 201)
    about = [line for line in lines(service.log("worker")) if line.get("stage") == "1-ptq"]
    assert about[0]["event"] == "stage begins"
    ids = {"job_id": job_id, "epoch": 1, "attempt": 1, "request_id": REQUEST, "trace_id": TRACE}
    assert all({name: line.get(name) for name in ids} == ids for line in about)
    assert lines(service.log("relay"))
    for name in ("api", "worker", "relay"):
        assert key not in service.log(name)


def test_a_stage_that_fails_is_a_span_that_went_wrong(
    collector: Collector, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.environ |= {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://127.0.0.1:{collector.server_port}/v1/traces",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    service.start_relay()
    service.start_worker()
    service.await_status(service.submit(wishes={"fail": "no data"}), "failed")
    until(lambda: collector.named("attempt"), "the attempt's span")
    (stage,) = collector.named("stage 1-ptq")
    (attempt,) = collector.named("attempt")
    assert [(span.status.code, span.status.message) for span in (stage, attempt)] == [(2, "data_unusable")] * 2
    assert stage.trace_id == attempt.trace_id
    assert not attempt.parent_span_id, "it was submitted without a trace"


def test_without_an_endpoint_nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import sys, api.tracing as t; t.configure('x')\nwith t.span('a', job_id='b'): pass\n"
    script += "assert t.traceparent() is t.trace_id() is t.begin('c') is None\n"
    script += "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    ours = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    for more in ({}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"}):
        done = subprocess.run(
            [sys.executable, "-c", script], env=ours | more, cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert done.stdout == "[]\n"


def test_an_endpoint_without_the_library_is_an_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(tracing.TracesNotInstalled, match=r"pip install '\.\[traces\]'"):
        tracing.configure("test")
