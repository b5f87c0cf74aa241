"""The command line: what it prints, and what it exits with."""

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from fixtures.waiting import until
from scripted_server import Script, job_document, page, problem, scripted, status
from standardwebhooks.webhooks import Webhook
from typer.testing import CliRunner

from lathe.cli import app
from optcore.errors import RecipeError
from optcore.recipe import Recipe, load_recipe, parse_recipe

RUN = [sys.executable, "-m", "lathe"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    with scripted() as script:
        monkeypatch.setenv("LATHE_URL", script.url)
        monkeypatch.setenv("LATHE_API_KEY", "lk_x")
        yield script


def lathe(*arguments: object, given: str | None = None) -> Any:
    """The command in this process; standard output and standard error apart."""
    return CliRunner().invoke(app, [str(each) for each in arguments], input=given, env={"COLUMNS": "200"})


def test_validate_says_valid_or_what_where_and_what_to_do(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    good = lathe("validate", recipe_file())
    assert (good.exit_code, good.stdout.split(";")[0]) == (0, "valid")
    bad = tmp_path / "bad.yaml"
    bad.write_text("model: {path: m}\nchain: [{technique: ptq, scheme: fp7}]\n")
    refused = lathe("validate", bad)
    with pytest.raises(RecipeError) as raised:
        load_recipe(bad)
    assert refused.exit_code == 1
    for words in (raised.value.message, "field: /chain/0/scheme", raised.value.remedy):
        assert words in refused.stderr.replace("\n", " ")


def test_validate_refuses_a_chain_that_does_not_fit_together(tmp_path: Path) -> None:
    twice = tmp_path / "twice.yaml"
    twice.write_text("model: {path: m}\nchain: [{technique: ptq, scheme: fp8}, {technique: ptq, scheme: fp8}]\n")
    refused = lathe("validate", twice)
    assert refused.exit_code == 1
    assert "field: /chain/1" in refused.stderr


def test_validate_and_schema_speak_json(recipe_file: Callable[..., Path]) -> None:
    assert json.loads(lathe("validate", recipe_file(), "--json").stdout)["version"] == 1
    assert json.loads(lathe("schema").stdout) == json.loads(json.dumps(Recipe.model_json_schema()))


def test_a_recipe_comes_from_standard_input_wherever_a_file_may(
    server: Script, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    text = recipe_file().read_text()
    server.on("POST /v1/jobs", status(201, job_document()))
    server.on("POST /v1/jobs/estimate", status(200, {"allowed_to_proceed": True, "machine": {"device": "cpu"}}))
    for words in (["submit"], ["estimate"], ["validate"], ["run", "--out", tmp_path / "out"]):
        done = lathe(*words, "-", given=text)
        assert done.exit_code == 0, done.output
    sent = [json.loads(body) for _, _, _, body in server.requests]
    assert sent == [parse_recipe(text).model_dump(mode="json")] * 2
    assert (tmp_path / "out/report.json").is_file()
    assert "larger than a recipe can be" in lathe("validate", "-", given="#" * 300_000).stderr
    assert "a recipe is a mapping, got NoneType" in lathe("validate", "-", given="").stderr


@pytest.mark.parametrize(
    ("model", "reference"),
    [
        ("org/name", {"id": "org/name", "revision": "main", "path": None}),
        ("org/name@v2", {"id": "org/name", "revision": "v2", "path": None}),
        ("/models/a@b", {"id": None, "revision": "main", "path": "/models/a@b"}),
        ("./here", {"id": None, "revision": "main", "path": "./here"}),
    ],
)
def test_another_model_takes_the_place_of_the_recipes(
    recipe_file: Callable[..., Path], model: str, reference: dict[str, str | None]
) -> None:
    recipe = recipe_file()
    checked = json.loads(lathe("validate", recipe, "--model", model, "--json").stdout)
    assert checked == {**load_recipe(recipe).model_dump(mode="json"), "model": reference}


def test_a_model_that_is_none_is_refused_at_its_field(recipe_file: Callable[..., Path]) -> None:
    refused = lathe("validate", recipe_file(), "--model", "not a model")
    assert refused.exit_code == 1
    assert "field: /model/id" in refused.stderr


def test_a_job_is_sent_with_the_model_and_the_key_of_the_command_line(
    server: Script, recipe_file: Callable[..., Path]
) -> None:
    server.on("POST /v1/jobs", status(201, job_document()))
    sent = lathe("submit", recipe_file(), "--model", "org/name", "--idempotency-key", "nightly-7")
    assert sent.exit_code == 0, sent.output
    ((_, _, headers, body),) = server.requests
    assert (headers["idempotency-key"], json.loads(body)["model"]["id"]) == ("nightly-7", "org/name")
    for key in ("", "ä", "a\nb", "k" * 256):
        assert lathe("submit", recipe_file(), "--idempotency-key", key).exit_code == 2
    assert len(server.requests) == 1


def test_the_version_is_that_of_the_package() -> None:
    told = lathe("--version")
    assert (told.exit_code, told.stdout) == (0, f"lathe {version('lathe')}\n")


def test_run_shows_the_stages_and_the_table_and_leaves_the_artifact(
    recipe_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    done = lathe("run", recipe_file(), "--out", tmp_path / "out", "--work", tmp_path / "work")
    assert done.exit_code == 0, done.output
    assert "1-ptq: succeeded" in done.stderr
    for words in ("Size on disk", "10 MB", "3 MB", "better", "max scales"):
        assert words in done.stdout
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert "HF_TOKEN" not in report["environment"]
    assert parse_recipe((tmp_path / "out/recipe.yaml").read_text()).seed == 7, "what was fetched is what is run"


def test_run_with_json_prints_events_only(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    done = lathe("run", recipe_file(), "--out", tmp_path / "out", "--json")
    events = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert events[-1] == "run_finished"
    assert done.stderr == ""


def test_a_run_that_fails_says_why_and_exits_with_1(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    failed = lathe("run", recipe_file(fail="the text is empty"), "--out", tmp_path / "out")
    assert failed.exit_code == 1
    said = ["error: the text is empty", "stage: 1-ptq", "field: /calibration", "remedy: use other text"]
    assert [line for line in failed.stderr.splitlines() if line in said] == said
    assert not (tmp_path / "out").exists()


def test_an_engine_that_dies_leaves_its_last_words(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    crashed = lathe("run", recipe_file(crash="yes"), "--out", tmp_path / "out")
    assert crashed.exit_code == 1
    assert "error: the engine crashed with exit code 7" in crashed.stderr
    assert "the last words" in crashed.stderr


def test_run_without_the_engine_says_how_to_get_it(
    recipe_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LATHE_ENGINE_COMMAND")
    monkeypatch.setattr("lathe.cli.engine.ENGINE_MODULES", ("no_such_module",))
    missing = lathe("run", recipe_file(), "--out", tmp_path / "out")
    assert missing.exit_code == 1
    assert "pip install '.[engine]'" in missing.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_stopped_leaves_no_engine(
    recipe_file: Callable[..., Path], tmp_path: Path, number: signal.Signals
) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    command = [*RUN, "run", str(recipe_file(hold=str(hold))), "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        until(hold.with_suffix(".pid").exists)
        engine = int(until(hold.with_suffix(".pid").read_text))
        process.send_signal(number)
        process.communicate(timeout=30)
    assert process.returncode != 0
    until(lambda: not Path(f"/proc/{engine}/cmdline").exists() or not Path(f"/proc/{engine}/cmdline").read_bytes())


def test_a_recipe_refused_by_the_service_reads_like_one_refused_here(
    server: Script, recipe_file: Callable[..., Path]
) -> None:
    wrong = {"pointer": "/model/path", "reason": "outside"}
    document = {"type": "x", "title": "T", "status": 422, "detail": "it lies outside", "code": "path_not_allowed"}
    server.on("POST /v1/jobs", status(422, {**document, "remedy": "use another", "errors": [wrong]}))
    refused = lathe("submit", recipe_file())
    assert refused.exit_code == 1
    assert refused.stderr == "error: it lies outside\nfield: /model/path\nremedy: use another\n"


def test_a_recipe_file_is_checked_before_anything_is_sent(server: Script, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("model: {path: m}\nchian: []\n")
    assert lathe("submit", bad).exit_code == 1
    assert lathe("submit", tmp_path / "absent.yaml").exit_code == 1
    assert server.requests == []


def test_wait_exits_with_0_only_when_all_succeeded(server: Script) -> None:
    failure = {"kind": "user_error", "code": "x", "message": "no text"}
    server.on("GET /v1/jobs/job_1", status(200, job_document(status="succeeded")))
    server.on("GET /v1/jobs/job_2", status(200, job_document(id="job_2", status="failed", failure=failure)))
    assert lathe("wait", "job_1").exit_code == 0
    both = lathe("wait", "job_1", "job_2")
    assert (both.exit_code, both.stdout) == (1, "job_1 succeeded\njob_2 failed\n")
    assert "no text" in both.stderr
    server.on("GET /v1/jobs/job_1", status(200, job_document()))
    assert "still running" in lathe("wait", "job_1", "--timeout", "0").stderr


def test_words_from_elsewhere_cannot_steer_the_terminal(server: Script) -> None:
    recipe = job_document()["recipe"] | {"name": "\x1b[2J[red]x[/red]"}
    server.on("GET /v1/jobs", status(200, page(job_document(name="\x1b[2J[red]x[/red]", recipe=recipe))))
    listed = lathe("ls")
    assert listed.exit_code == 0
    assert "\x1b" not in listed.stdout
    assert "[red]x[/red]" in listed.stdout


def test_ls_stops_at_the_limit_and_speaks_json(server: Script) -> None:
    rows = [job_document(id=f"job_{number}") for number in range(3)]
    server.on("GET /v1/jobs", status(200, page(*rows, has_more=True, last_id="job_2")))
    listed = lathe("ls", "--limit", "2", "--json")
    assert [json.loads(line)["id"] for line in listed.stdout.splitlines()] == ["job_0", "job_1"]
    assert len(server.requests) == 1


def test_a_token_comes_from_standard_input_never_from_the_command_line(server: Script) -> None:
    stored = {"name": "hub", "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z"}
    server.on("PUT /v1/credentials/hub", status(200, stored))
    done = lathe("credential", "set", "hub", given="hf_secret\n")
    assert done.exit_code == 0
    assert json.loads(server.requests[0][3]) == {"token": "hf_secret"}
    assert "hf_secret" not in done.output
    assert lathe("credential", "set", "hub", given="\n").exit_code == 1
    assert lathe("credential", "set", "hub", "hf_secret").exit_code == 2


def test_a_webhook_is_verified_with_the_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "whsec_" + base64.b64encode(b"k" * 32).decode()
    monkeypatch.setenv("LATHE_WEBHOOK_SECRET", secret)
    body, now = '{"type":"job.failed","timestamp":"2026-01-01T00:00:00Z","data":{}}', datetime.now(UTC)
    words = [
        "--id",
        "msg_1",
        "--timestamp",
        int(now.timestamp()),
        "--signature",
        Webhook(secret).sign("msg_1", now, body),
    ]
    good = lathe("webhook", "verify", *words, given=body)
    assert (good.exit_code, json.loads(good.stdout)["type"]) == (0, "job.failed")
    bad = lathe("webhook", "verify", *words, given=body + " ")
    assert (bad.exit_code, bad.stdout) == (1, "")
    assert "not signed" in bad.stderr


def test_an_unauthorized_answer_keeps_its_remedy(server: Script) -> None:
    server.on("GET /v1/techniques", problem(401, "unauthorized"))
    refused = lathe("techniques")
    assert (refused.exit_code, refused.stderr) == (1, "error: detail of unauthorized\n")


def test_what_up_left_behind_is_used_when_the_environment_names_nothing(
    server: Script, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LATHE_URL")
    monkeypatch.delenv("LATHE_API_KEY")
    server.on("GET /v1/jobs", status(200, page()))
    (own_home / "client.json").write_text(json.dumps({"url": server.url, "api_key": "lk_left"}))
    assert lathe("ls").exit_code == 0
    assert server.sent("GET /v1/jobs")[0]["authorization"] == "Bearer lk_left"
    (own_home / "client.json").write_text("{}")
    assert "start `lathe up` again" in lathe("ls").stderr


def test_a_wrong_command_line_exits_with_2_and_help_names_every_command() -> None:
    assert lathe("levitate").exit_code == 2
    shown = lathe("--help").stdout
    commands = "run validate schema up submit ls show events wait cancel download recipe techniques formats"
    for command in commands.split():
        assert f" {command} " in shown


def test_the_program_is_there_as_a_module_and_as_a_script() -> None:
    script = Path(sys.executable).parent / "lathe"
    for command in (RUN, [str(script)]):
        done = subprocess.run([*command, "schema"], capture_output=True, text=True, check=True, env=os.environ)
        assert json.loads(done.stdout)["title"] == "Recipe"
