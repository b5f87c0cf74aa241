"""`lathe up`, end to end: real servers, API and workers; only the engine is a small one that does as it is told."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.waiting import until
from lathe_engine import COMMAND as ENGINE
from typer.testing import CliRunner

import lathe
from lathe.cli import app
from lathe.local.stack import Stack
from optcore.errors import RecipeError
from optcore.recipe import load_recipe

pytestmark = [pytest.mark.integration, pytest.mark.e2e]

EMBEDDED = {"LATHE_DATABASE_URL": "", "LATHE_REDIS_URL": "", "LATHE_ENGINE_COMMAND": ENGINE}
"""Servers of its own, whatever the environment offers to the other tests."""
PROGRAMS = ("api", "relay", "worker-gpu", "worker-cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "tiny").mkdir()
    return folder


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Stack]:
    environment = {**EMBEDDED, "LATHE_MODEL_ROOTS": str(models), "LATHE_RENEW_SECONDS": "1"}
    with Stack(tmp_path_factory.mktemp("stack"), environment=environment) as running:
        yield running


@pytest.fixture
def client(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[lathe.Client]:
    monkeypatch.setenv("LATHE_URL", stack.url)
    monkeypatch.setenv("LATHE_API_KEY", stack.api_key)
    with lathe.Client() as client:
        yield client


def recipe(**wishes: str) -> dict[str, Any]:
    return {"model": {"path": "tiny"}, "chain": [{"technique": "ptq", "scheme": "fp8"}], "metadata": wishes}


def command(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments], env={"COLUMNS": "200"})


def test_a_job_from_recipe_to_files(client: lathe.Client, tmp_path: Path) -> None:
    key = os.urandom(8).hex()
    job = client.jobs.create(recipe(), idempotency_key=key)
    assert client.jobs.create(recipe(), idempotency_key=key).id == job.id
    kinds = [event.type for event in client.jobs.events(job.id, stream=True)]
    assert kinds.count("stage_finished") == 2
    assert "run_finished" in kinds or "job.succeeded" in kinds
    done = client.jobs.result(job.id, timeout=60)
    assert (done.status, [stage.status for stage in done.stages]) == ("succeeded", ["succeeded", "succeeded"])
    assert [event.type for event in client.jobs.events(job.id)] == kinds
    assert client.jobs.report(job.id)["measurements"][0]["name"] == "bytes"
    assert lathe.parse_recipe(client.jobs.recipe(job.id)).seed == 7
    paths = client.artifacts.download(job.id, tmp_path / "out")
    assert {"config.json", "weights.bin", "manifest.json"} <= {path.name for path in paths}
    assert {artifact.path for artifact in client.artifacts.list(job.id)} == {
        str(path.relative_to(tmp_path / "out")) for path in paths
    }
    assert next(client.jobs.list()).id == job.id


def test_a_download_goes_on_by_range_and_a_byte_changed_on_the_service_is_noticed(
    client: lathe.Client, stack: Stack, tmp_path: Path
) -> None:
    job = client.jobs.result(client.jobs.create(recipe()).id)
    weights = next(item for item in client.artifacts.list(job.id) if item.path == "sub/weights.bin")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / f".{weights.sha256[:16]}.part").write_bytes(b"w" * 60_000)
    received: list[int] = []
    client.artifacts.download(
        job.id, tmp_path, on_progress=lambda item, done: received.append(done) if item == weights else None
    )
    assert received[0] > 60_000
    assert received[-1] == weights.bytes
    (stored,) = (stack.data_dir / "data").rglob(f"{job.id}/**/weights.bin")
    stored.write_bytes(b"x" + b"w" * 99_999)
    with pytest.raises(lathe.DigestMismatch):
        client.artifacts.download(job.id, tmp_path / "again")
    assert not (tmp_path / "again/sub/weights.bin").exists()


def test_a_failed_job_raises_its_failure_and_a_cancelled_one_says_so(client: lathe.Client, tmp_path: Path) -> None:
    with pytest.raises(lathe.JobFailed, match="no text") as raised:
        client.jobs.result(client.jobs.create(recipe(fail="no text")).id)
    assert (raised.value.failure.stage, raised.value.field) == ("1-ptq", "/calibration")
    with pytest.raises(lathe.NotFound):
        client.jobs.report(raised.value.job.id)
    hold = tmp_path / "hold"
    hold.touch()
    job = client.jobs.create(recipe(hold=str(hold)))
    until(hold.with_suffix(".pid").exists)
    assert client.jobs.cancel(job.id).status == "cancelling"
    with pytest.raises(lathe.JobCancelled):
        client.jobs.result(job.id, timeout=60)


def test_a_bad_recipe_reads_the_same_over_rest_sdk_and_command_line(client: lathe.Client, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("model: {path: tiny}\nchain: [{technique: ptq, scheme: fp7}]\n")
    with pytest.raises(RecipeError) as here:
        load_recipe(path)
    with pytest.raises(lathe.RecipeRefused) as there:
        client.jobs.create({"model": {"path": "tiny"}, "chain": [{"technique": "ptq", "scheme": "fp7"}]})
    one, other = here.value, there.value
    assert (one.message, one.field, one.remedy) == (other.message, other.field, other.remedy)
    assert one.message in command("submit", path).stderr.replace("\n", " ")


def test_the_command_line_submits_watches_and_brings_home(client: lathe.Client, models: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe()))
    done = command("submit", path, "--watch")
    assert done.exit_code == 0, done.output
    job_id = done.stdout.splitlines()[0]
    assert "1-ptq: succeeded" in done.stderr
    assert "Size on disk" in done.stdout
    assert "succeeded" in command("show", job_id).stdout
    assert json.loads(command("events", job_id, "--json").stdout.splitlines()[0])["seq"] == 1
    assert "seed: 7" in command("recipe", job_id).stdout
    assert command("wait", job_id).exit_code == 0
    assert command("download", job_id, "--out", tmp_path / "out").exit_code == 0
    assert (tmp_path / "out/config.json").is_file()
    assert job_id in command("ls", "--status", "succeeded").stdout
    assert "ptq" in command("techniques").stdout
    assert "nvfp4" in command("formats").stdout
    path.write_text(json.dumps(recipe(fail="no text")))
    failed = command("submit", path, "--watch", "--json")
    assert (failed.exit_code, json.loads(failed.stdout)["status"]) == (1, "failed")
    assert command("show", "job_absent").exit_code == 1


def test_receivers_and_credentials_come_and_go(client: lathe.Client) -> None:
    made = client.webhook_endpoints.create("https://93.184.216.34/hook", events=["job.failed"])
    assert made.secret is not None
    assert made.secret.startswith("whsec_")
    assert [(item.id, item.secret) for item in client.webhook_endpoints.list()] == [(made.id, None)]
    client.webhook_endpoints.delete(made.id)
    assert list(client.webhook_endpoints.list()) == []
    with pytest.raises(lathe.Unprocessable):
        client.webhook_endpoints.create("http://127.0.0.1/")
    client.credentials.put("hub main", "hf_x")
    assert [item.name for item in client.credentials.list()] == ["hub main"]
    client.credentials.delete("hub main")
    with pytest.raises(lathe.NotFound):
        client.credentials.delete("hub main")


def test_another_key_sees_nothing(client: lathe.Client, stack: Stack) -> None:
    job_id = next(client.jobs.list()).id
    with lathe.Client(stack.url, "lk_" + "x" * 43) as stranger, pytest.raises(lathe.Unauthorized):
        stranger.jobs.get(job_id)
    with lathe.Client(stack.url) as nobody:
        assert nobody.health().status == "ok"


def test_the_async_client_does_the_same(client: lathe.Client, tmp_path: Path) -> None:
    async def use() -> tuple[str, list[str], int]:
        async with lathe.AsyncClient() as other:
            job = await other.jobs.create(recipe())
            kinds = [event.type async for event in other.jobs.events(job.id, stream=True)]
            done = await other.jobs.result(job.id)
            return done.status, kinds, len(await other.artifacts.download(job.id, tmp_path))

    status, kinds, files = asyncio.run(use())
    assert (status, kinds.count("stage_finished"), files) == ("succeeded", 2, 6)


def test_a_program_that_is_killed_comes_back_and_the_job_goes_on(
    client: lathe.Client, stack: Stack, tmp_path: Path
) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    job = client.jobs.create(recipe(hold=str(hold)))
    until(hold.with_suffix(".pid").exists)
    api, relay = stack.programs[:2]
    before = {program.name: program.pid for program in (api, relay)}
    events = client.jobs.events(job.id, stream=True)
    first = next(events)
    for program in (api, relay):
        assert program.pid is not None
        os.kill(program.pid, signal.SIGKILL)
    until(lambda: all(program.pid not in (None, before[program.name]) for program in (api, relay)))
    hold.unlink()
    assert [event.seq for event in events] == list(range(first.seq + 1, last_seq(client, job.id) + 1))
    assert client.jobs.get(job.id).status == "succeeded"


def test_servers_that_are_killed_come_back_and_jobs_run_again(client: lathe.Client, stack: Stack) -> None:
    for name in ("postgres", "valkey"):
        victims = [pid for pid in processes_of(stack.data_dir / "servers") if name.encode() in program_of(pid)]
        assert victims, name
        os.kill(min(victims), signal.SIGKILL)
    until(lambda: submitted(client), seconds=60)
    job = client.jobs.create(recipe(after="the fall"))
    assert client.jobs.result(job.id, timeout=90).status == "succeeded"


def test_nothing_is_left_running_and_the_next_start_knows_the_old_jobs(tmp_path: Path, models: Path) -> None:
    environment = {**EMBEDDED, "LATHE_MODEL_ROOTS": str(models)}
    with Stack(tmp_path / "data", environment=environment) as stack:
        assert {program.name for program in stack.programs} == set(PROGRAMS)
        assert len(processes_of(tmp_path)) >= 6
        for name in ("secret_key", "api_key", "client.json"):
            assert (stack.data_dir / name).stat().st_mode & 0o777 == 0o600
        with pytest.raises(lathe.LatheError, match="another `lathe up` runs"), Stack(tmp_path / "data"):
            pass
        with pytest.raises(lathe.LatheError, match="cannot listen"), Stack(tmp_path / "other", port=port_of(stack)):
            pass
        with lathe.Client(stack.url, stack.api_key) as client:
            job_id = client.jobs.create(recipe()).id
            client.jobs.result(job_id, timeout=60)
        key = stack.api_key
    assert processes_of(tmp_path) == []
    assert not (tmp_path / "data/client.json").exists()
    with Stack(tmp_path / "data", environment=environment) as again, lathe.Client(again.url, again.api_key) as client:
        assert again.api_key == key
        assert client.jobs.get(job_id).status == "succeeded"
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_up_prints_where_and_takes_everything_with_it_however_it_ends(tmp_path: Path, number: signal.Signals) -> None:
    environment = {**os.environ, **EMBEDDED, "LATHE_HOME": str(tmp_path / "home")}
    up = [sys.executable, "-m", "lathe", "up", "--port", "0"]
    said = tmp_path / "stderr"
    with (
        said.open("w") as stderr,
        subprocess.Popen(up, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment) as process,
    ):
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert all(lines), said.read_text()
        sign_in, url, key = (line.split()[-1] for line in lines)
        assert sign_in == f"{url}/sign-in#key={key}"
        with lathe.Client(url, key) as client:
            assert client.health().database
            assert list(client.jobs.list()) == []
        listed = subprocess.run([*up[:3], "ls"], env=environment, capture_output=True, text=True)
        assert listed.returncode == 0, listed.stderr
        process.send_signal(number)
        process.wait(60)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    until(lambda: not processes_of(tmp_path), seconds=60)


def submitted(client: lathe.Client) -> bool:
    try:
        return client.jobs.create(recipe()).status == "queued"
    except (lathe.ServerError, lathe.ConnectionFailed):
        return False


def program_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]


def last_seq(client: lathe.Client, job_id: str) -> int:
    return [event.seq for event in client.jobs.events(job_id)][-1]


def port_of(stack: Stack) -> int:
    return int(stack.url.rsplit(":", 1)[1])


def processes_of(folder: Path) -> list[int]:
    """Live processes whose command line, environment or working directory names the folder, this one left out."""
    others = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
    return [pid for pid in others if pid != os.getpid() and str(folder).encode() in traces_of(pid)]


def traces_of(pid: int) -> bytes:
    entry = Path(f"/proc/{pid}")
    try:
        return (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes() + os.readlink(entry / "cwd").encode()
    except OSError:  # it ended while we looked
        return b""
