"""Commands that look before and after jobs, what they print as JSON, and how they end."""

import base64
import http.client
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from fixtures.waiting import until
from scripted_server import Handler, Script, job_document, page, problem, scripted, status
from standardwebhooks.webhooks import Webhook
from typer.testing import CliRunner

from lathe.cli import app, output
from lathe.models import SCOPES, JobStatus
from lathe.webhook_models import WebhookMessageStatus

RUN = [sys.executable, "-m", "lathe"]
JOB = "GET /v1/jobs/job_1"
AT = "2026-01-01T00:00:00Z"
STAGE = {
    "stage": "1-ptq",
    "kind": "ptq",
    "seconds": 100,
    "seconds_low": 50,
    "seconds_high": 200,
    "host_memory_bytes": 2e9,
    "disk_bytes": 3e9,
    "raw_seconds": 1,
    "raw_memory_bytes": 1,
}
MACHINE = {"device": "cpu", "cores": 8}
ESTIMATE = {
    "allowed_to_proceed": True,
    "machine": MACHINE,
    "stages": [STAGE],
    "results": [{"format": "gguf", "weight_bytes": 4e9}],
    "source_bytes": 16e9,
    "seconds": 100,
    "seconds_low": 50,
    "seconds_high": 200,
    "host_memory_bytes": 2e9,
    "disk_bytes": 3e9,
    "cost": 1.5,
    "cost_low": 0.75,
    "cost_high": 3,
    "currency": "EUR",
    "learned_from": 12,
    "workers": [
        {"worker_id": "w1", "host": "big", "machine": MACHINE, "fits": True, "seconds": 100, "cost": 1.5},
        {
            "worker_id": "w2",
            "host": "small",
            "machine": MACHINE,
            "fits": False,
            "seconds": 0,
            "reasons": ["needs 2 GB of memory, has 1 GB"],
        },
    ],
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    with scripted() as script:
        monkeypatch.setenv("LATHE_URL", script.url)
        monkeypatch.setenv("LATHE_API_KEY", "lk_x")
        monkeypatch.setattr(output.console, "_width", 200)
        yield script


def lathe(*words: object, code: int = 0) -> Any:
    done = CliRunner().invoke(app, [str(each) for each in words])
    assert done.exit_code == code, done.output
    return done


def _objects(done: Any) -> list[Any]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_an_estimate_is_told_by_stage_and_by_worker(server: Script, recipe_file: Callable[..., Path]) -> None:
    server.on("POST /v1/jobs/estimate", status(200, ESTIMATE))
    recipe = recipe_file()
    told = lathe("estimate", recipe)
    for words in ("1-ptq", "1 min 40 s", "50 s to 3 min 20 s", "2 GB", "big", "fits", "needs 2 GB of memory"):
        assert words in told.stdout
    for words in ("4 GB of 16 GB in gguf", "cost: 1.50 EUR (0.75 EUR to 3.00 EUR)", "from 12 finished stages"):
        assert words in told.stderr
    assert json.loads(server.requests[0][3])["chain"][0]["scheme"] == "fp8"
    assert _objects(lathe("estimate", recipe, "--json"))[0]["cost"] == 1.5


def test_an_estimate_without_a_price_says_that_none_is_set(server: Script, recipe_file: Callable[..., Path]) -> None:
    server.on("POST /v1/jobs/estimate", status(200, {**ESTIMATE, "cost": None, "cost_low": None, "cost_high": None}))
    assert "cost: no price is set for cpu; LATHE_PRICES" in lathe("estimate", recipe_file()).stderr


def test_sizes_of_a_race_are_told_from_the_least_to_the_most(server: Script, recipe_file: Callable[..., Path]) -> None:
    sizes = [{"candidate": f"c0{number}", "format": "gguf", "weight_bytes": number * 1e9} for number in (3, 1, 2)]
    server.on("POST /v1/jobs/estimate", status(200, {**ESTIMATE, "results": sizes}))
    told = lathe("estimate", recipe_file())
    assert "result main: 1 GB to 3 GB, by candidate, of 16 GB in gguf" in told.stderr


def test_a_job_that_could_not_be_run_ends_with_1_and_says_where(
    server: Script, recipe_file: Callable[..., Path]
) -> None:
    wrong = {"pointer": "/chain/0", "reason": "it needs 9 GB\x1b[2J", "remedy": "use block scope"}
    server.on(
        "POST /v1/jobs/estimate",
        status(200, {"allowed_to_proceed": False, "machine": MACHINE, "problems": [wrong, {**wrong, "fatal": False}]}),
    )
    told = lathe("estimate", recipe_file(), code=1)
    assert "error: it needs 9 GB" in told.stderr
    assert "warning: it needs 9 GB" in told.stderr
    assert "field: /chain/0\nremedy: use block scope\n" in told.stderr
    assert "\x1b" not in told.stderr


def test_a_job_is_shown_with_what_it_costs(server: Script) -> None:
    cost = {"amount": 12.345, "currency": "EUR"}
    server.on(JOB, status(200, job_document(cost=cost)), status(200, job_document(cost=cost, status="cancelled")))
    assert "cost so far: 12.35 EUR" in lathe("show", "job_1").stderr
    assert "cost: 12.35 EUR" in lathe("show", "job_1").stderr
    server.on(JOB, status(200, job_document()))
    assert "cost" not in lathe("show", "job_1").stderr


def test_jobs_are_compared_side_by_side(server: Script) -> None:
    job = {"status": "succeeded", "name": None, "model": "m", "summary": "FP8", "seconds": 1}
    facts = {"weight_bytes": 1, "quality": 0.1, "tokens_per_second": 5}
    jobs = [
        {**job, **facts, "id": "job_1", "on_front": True},
        {**job, **facts, "id": "job_2", "on_front": False, "dominated_by": ["job_1"]},
    ]
    row = {"name": "bytes", "title": "Size", "unit": "bytes", "better": "lower"}
    document = {
        "jobs": jobs,
        "differences": [{"pointer": "/chain/0/scheme", "values": ["fp8", None]}],
        "measurements": [{**row, "sources": [1e7, 1e7], "results": [3e6, 4e6], "best": 0}],
        "notices": ["other hardware"],
    }
    server.on("GET /v1/comparisons", status(200, document))
    told = lathe("compare", "job_1", "job_2")
    for words in ("on the front", "beaten by job_1", "/chain/0/scheme", "10 MB", "3 MB *", "4 MB"):
        assert words in told.stdout
    assert "note: other hardware" in told.stderr
    assert _objects(lathe("compare", "job_1", "job_2", "--json"))[0]["jobs"][1]["dominated_by"] == ["job_1"]
    assert lathe("compare", code=2)


def test_a_template_is_printed_as_a_recipe(server: Script) -> None:
    recipe = {"chain": [{"technique": "ptq", "scheme": "int4"}], "model": {"id": "org/model"}}
    listed = {"name": "fit-on-8-gb", "title": "Fit on 8 GB", "description": "Small.", "recipe": recipe}
    server.on("GET /v1/templates", status(200, page(listed)))
    assert "Fit on 8 GB" in lathe("templates").stdout
    assert yaml.safe_load(lathe("templates", "fit-on-8-gb").stdout) == recipe
    assert _objects(lathe("templates", "fit-on-8-gb", "--json"))[0]["recipe"] == recipe
    assert "no template 'x'" in lathe("templates", "x", code=1).stderr
    other = lathe("templates", "fit-on-8-gb", "--model", "me/other@v2").stdout
    assert yaml.safe_load(other) == {**recipe, "model": {"id": "me/other", "revision": "v2"}}
    assert "none is named" in lathe("templates", "--model", "me/other", code=1).stderr


def test_workers_and_the_project_are_shown(server: Script) -> None:
    worker = {"id": "w1", "host": "gpu-1", "device": "cuda", "gpus": 2, "gpu_kind": "H200", "gpu_memory_bytes": 141e9}
    more = {"status": "quarantined", "reason": "three lost jobs", "started_at": AT, "seen_at": AT}
    server.on("GET /v1/workers", status(200, page({**worker, **more})))
    limits = {"max_running": 2, "max_unfinished": None, "max_storage_bytes": 1e12, "max_gpu_seconds": None}
    used = {"unfinished": 1, "storage_bytes": 5e9, "gpu_seconds": 3600}
    server.on("GET /v1/project", status(200, {"id": "acme", "name": "Acme", **limits, **used}))
    entry = {"id": 1, "at": AT, "actor": "key_1", "action": "job.cancel", "target": "job_1", "request_id": "r"}
    server.on("GET /v1/audit", status(200, page({**entry, "address": "10.0.0.1"}, {**entry, "id": 0, "address": ""})))
    server.on("GET /readyz", status(200, {"status": "ok", "database": True}))
    shown = lathe("workers").stdout
    assert all(words in shown for words in ("2 x H200", "141 GB", "quarantined", "three lost jobs"))
    assert all(words in lathe("project").stdout for words in ("5 GB", "1 TB", "60 min 00 s", "no limit"))
    assert [entry["action"] for entry in _objects(lathe("audit", "--limit", 1, "--json"))] == ["job.cancel"]
    assert "10.0.0.1" in lathe("audit").stdout
    assert lathe("health").stdout == "ok\n"


def test_the_list_is_filtered_by_the_service(server: Script) -> None:
    server.on("GET /v1/jobs", status(200, page()))
    lathe(
        "ls", "--technique", "ptq", "--model", "org/m", "--name", "fast", "--metadata", "team=nlp", "--status", "failed"
    )
    (asked,) = server.queries("GET /v1/jobs")
    filters = {"technique": ["ptq"], "model": ["org/m"], "name_contains": ["fast"], "metadata": ["team=nlp"]}
    assert asked == {**filters, "status": ["failed"], "limit": ["20"]}
    assert "not KEY=VALUE" in lathe("ls", "--metadata", "team", code=1).stderr


def test_what_a_job_said_comes_as_lines_or_as_json(server: Script) -> None:
    events = [
        {"seq": 1, "at": AT, "type": "job.running", "data": {}},
        {"seq": 2, "at": AT, "type": "stage_started", "data": {"stage": "1-ptq\x1b[2J"}},
        {"seq": 3, "at": AT, "type": "metric", "data": {}},
    ]
    server.on(f"{JOB}/events", status(200, page(*events)))
    chunk = {"seq": 1, "epoch": 1, "at": AT, "text": "one\ntwo\n"}
    server.on(f"{JOB}/logs", status(200, page(chunk)))
    numbers = {name: [0.5, 0.25] for name in ("mean", "low", "high", "last")}
    curve = {"stage": "1-qat", "name": "loss", "first_step": [0, 1], "last_step": [0, 1], **numbers}
    server.on(f"{JOB}/metrics", status(200, page(curve)))
    said = lathe("events", "job_1").stdout.splitlines()
    assert [line[21:] for line in said] == ["running", "1-ptq [2J: started"]
    assert [event["seq"] for event in _objects(lathe("events", "job_1", "--json"))] == [1, 2, 3]
    assert lathe("logs", "job_1").stdout == "one\ntwo\n"
    assert _objects(lathe("logs", "job_1", "--json"))[0]["text"] == "one\ntwo\n"
    assert lathe("metrics", "job_1").stdout.split()[-5:] == ["1-qat", "loss", "2", "0.5", "0.25"]
    assert _objects(lathe("metrics", "job_1", "--json"))[0]["mean"] == [0.5, 0.25]


def test_what_is_gone_and_what_was_fetched_is_told_as_json(server: Script, tmp_path: Path) -> None:
    for place in ("jobs/job_1", "keys/job_1", "credentials/job_1", "webhook_endpoints/job_1"):
        server.on(f"DELETE /v1/{place}", status(204))
    for words in (["delete"], ["keys", "revoke"], ["key", "revoke"], ["credential", "rm"], ["webhook", "rm"]):
        assert _objects(lathe(*words, "job_1", "--json")) == [{"deleted": True, "id": "job_1"}]
        assert lathe(*words, "job_1").output == ""
    file = {"path": "a.bin", "bytes": 2, "sha256": "fb8e20fc2e4c3f248c60c39bd652f3c1347298bb977b8b4d5903b85055620603"}
    server.on(f"{JOB}/artifacts", status(200, page(file))).on(f"{JOB}/artifacts/a.bin", status(200, b"ab"))
    assert _objects(lathe("artifacts", "job_1", "--json"))[0] == file
    fetched = _objects(lathe("download", "job_1", "--out", tmp_path, "--json"))
    assert fetched == [{"bytes": 2, "path": str(tmp_path / "a.bin")}]
    server.on(f"{JOB}/recipe", status(200, b"seed: 7\n"))
    assert _objects(lathe("recipe", "job_1", "--json")) == [{"seed": 7}]
    server.on(f"{JOB}/report", status(200, {"measurements": [], "model": "m"}))
    assert _objects(lathe("report", "job_1", "--json")) == [{"measurements": [], "model": "m"}]


def test_waiting_in_vain_ends_with_3(server: Script) -> None:
    server.on(JOB, status(200, job_document()))
    assert "still running" in lathe("wait", "job_1", "--timeout", "0", code=3).stderr


def test_ctrl_c_while_watching_leaves_the_job_and_says_how_to_go_on(
    server: Script, recipe_file: Callable[..., Path]
) -> None:
    watched = threading.Event()

    def silence(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.flush()
        watched.set()
        handler.rfile.read(1)  # until the other side hangs up

    server.on("POST /v1/jobs", status(201, job_document())).on(f"{JOB}/events", silence)
    with subprocess.Popen(
        [*RUN, "submit", str(recipe_file()), "--watch"], stderr=subprocess.PIPE, text=True
    ) as process:
        until(watched.is_set)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the job goes on: `lathe logs -f job_1`" in said
    assert [path for method, path, _, _ in server.requests if method == "POST"] == ["/v1/jobs"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_completion(shell: str) -> None:
    done = CliRunner().invoke(app, [], prog_name="lathe", env={"_LATHE_COMPLETE": f"source_{shell}"})
    assert f"_LATHE_COMPLETE=complete_{shell}" in done.stdout
    assert "--install-completion" in lathe("--help").stdout


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (("ls", "--status"), get_args(JobStatus)),
        (("keys", "create", "--scope"), SCOPES),
        (("webhook", "deliveries", "whe_1", "--status"), get_args(WebhookMessageStatus)),
    ],
)
def test_an_option_with_few_values_lists_and_completes_them(words: tuple[str, ...], values: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app, [*words[:-1], "--help"], env={"COLUMNS": "200"}).stdout
    assert [value for value in values if value not in shown] == []
    refused = lathe(*words, "no-such-value", code=2).stderr
    assert "no-such-value" in refused
    line = {"COMP_WORDS": f"lathe {' '.join(words)} ", "COMP_CWORD": str(len(words) + 1)}
    done = CliRunner().invoke(app, [], prog_name="lathe", env={"_LATHE_COMPLETE": "complete_bash", **line})
    assert done.stdout.split() == list(values)


def test_ids_are_completed_and_a_service_that_is_away_completes_nothing(
    server: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.on("GET /v1/jobs", status(200, page(job_document(id="job_7"), job_document(id="job_8", name="fast"))))
    line = {"_LATHE_COMPLETE": "complete_bash", "COMP_WORDS": "lathe show job_8", "COMP_CWORD": "2"}
    done = CliRunner().invoke(app, [], prog_name="lathe", env=line)
    assert done.stdout.split() == ["job_8"]
    server.on("GET /v1/jobs", problem(503, "unavailable"))
    assert CliRunner().invoke(app, [], prog_name="lathe", env=line).stdout.split() == []


def _post(port: int, body: str, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", "/", body, headers)
    answer = connection.getresponse().status
    connection.close()
    return answer


def test_listening_takes_signed_messages_once_and_cleans_up(server: Script) -> None:
    secret = "whsec_" + base64.b64encode(b"k" * 32).decode()
    endpoint = {"id": "whe_1", "url": "http://x/", "events": ["job.failed"], "created_at": AT, "secret": secret}
    server.on("POST /v1/webhook_endpoints", status(201, endpoint)).on("DELETE /v1/webhook_endpoints/whe_1", status(204))
    command = [*RUN, "webhook", "listen", "--messages", "2", "--json", "--event", "job.failed"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: server.requests)
        asked = json.loads(server.requests[0][3])
        port = int(asked["url"].rsplit(":", 1)[1].strip("/"))
        now = datetime.now(UTC)

        def headers(message_id: str, text: str) -> dict[str, str]:
            signature = Webhook(secret).sign(message_id, now, text)
            times = {"webhook-timestamp": str(int(now.timestamp()))}
            return {"webhook-id": message_id, "webhook-signature": signature, **times}

        body = json.dumps({"type": "job.failed", "timestamp": AT, "data": {"job_id": "job_1"}})
        assert _post(port, body, headers("msg_1", body)) == 204
        assert _post(port, body, headers("msg_1", body)) == 204
        assert _post(port, body + " ", headers("msg_2", body)) == 400
        assert _post(port, "x" * 70_000, {}) == 413
        assert _post(port, body, headers("msg_3", body)) == 204
        printed, said = process.communicate(timeout=30)
    assert process.returncode == 0
    assert asked["events"] == ["job.failed"]
    assert [json.loads(line)["id"] for line in printed.splitlines()] == ["msg_1", "msg_3"]
    assert "refused: the message is not signed" in said
    assert secret not in printed + said
    assert server.requests[-1][:2] == ("DELETE", "/v1/webhook_endpoints/whe_1")
