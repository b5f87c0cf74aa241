"""`lathe up`, end to end: real servers, API and workers; only the engine is a small one that does as it is told."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.proxy import Proxy
from fixtures.waiting import until
from live import EMBEDDED, port_of, processes_of, recipe
from live_operations import RECEIVER, documented, missed, recorded, settled, walk
from typer.testing import CliRunner

import lathe
from lathe.cli import app
from lathe.local.stack import Stack
from optcore.errors import RecipeError
from optcore.recipe import load_recipe

pytestmark = [pytest.mark.integration, pytest.mark.e2e]


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
    assert received[0] == 60_000
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


@pytest.mark.parametrize("kind", [lathe.Client, lathe.AsyncClient])
def test_every_operation_answers_the_sdk(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: type[lathe.Client | lathe.AsyncClient]
) -> None:
    operations = documented(stack.url)

    async def use() -> None:
        client = kind(stack.url, stack.api_key)
        await walk(client, tmp_path, operations)
        await settled(client.close())

    with recorded(monkeypatch) as sent:
        asyncio.run(use())
    assert missed(operations, sent) == set()


def test_every_operation_has_a_command(
    client: lathe.Client, stack: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    operations = documented(stack.url)
    path, hold = tmp_path / "recipe.yaml", tmp_path / "hold"
    path.write_text(json.dumps(recipe(hold=str(hold))))
    hold.touch()

    def run(*words: object, code: int = 0) -> list[Any]:
        done = command(*words)
        assert done.exit_code == code, (words, done.output)
        return [json.loads(line) for line in done.stdout.splitlines()] if "--json" in words else done.stdout.split()

    with recorded(monkeypatch) as sent:
        job_id = run("submit", path, "--json")[0]["id"]
        until(hold.with_suffix(".pid").exists)
        assert run("pause", job_id, "--json")[0]["status"] in ("pausing", "paused")
        until(lambda: client.jobs.get(job_id).status == "paused")
        hold.with_suffix(".pid").unlink()
        assert run("resume", job_id) == [job_id, "queued"]
        until(hold.with_suffix(".pid").exists)
        run("wait", job_id, "--timeout", "0", code=3)
        assert run("cancel", job_id) == [job_id, "cancelling"]
        assert run("wait", job_id, code=1) == [job_id, "cancelled"]
        hold.unlink()
        assert run("retry", job_id, "--json")[0]["run_number"] == 2
        assert run("wait", job_id, "--json")[0]["status"] == "succeeded"
        run("publish", job_id, "--repo", "me/x", code=1)
        assert run("report", job_id, "--json")[0]["measurements"][0]["name"] == "bytes"
        fetched = run("download", job_id, "--out", tmp_path / "out", "--json")
        assert len(fetched) == len(run("artifacts", job_id, "--json"))
        for name in ("show", "events", "logs", "metrics", "recipe"):
            run(name, job_id, "--json")
        if ("GET", "/v1/comparisons") in operations:
            run("compare", job_id, client.jobs.create(recipe()).result(timeout=60).id, "--json")
        assert run("delete", job_id, "--json") == [{"deleted": True, "id": job_id}]
        for name, place in (("workers", "/v1/workers"), ("templates", "/v1/templates")):
            assert ("GET", place) not in operations or run(name, "--json")
        if ("POST", "/v1/jobs/estimate") in operations:
            assert command("estimate", path, "--json").exit_code in (0, 1)
        run("ls", "--status", "succeeded", "--json")
        for name in ("techniques", "formats", "health", "project", "audit"):
            assert run(name, "--json")
        _keys_and_receivers(run)
    assert missed(operations, sent) == set()


def _keys_and_receivers(run: Callable[..., list[Any]]) -> None:
    run("keys", "revoke", run("keys", "create", "--scope", "jobs:read", "--json")[0]["id"])
    assert run("keys", "ls", "--json")
    stored = CliRunner().invoke(app, ["credential", "set", "hub", "--json"], input="hf_x\n")
    assert json.loads(stored.stdout)["name"] == "hub"
    assert [item["name"] for item in run("credential", "ls", "--json")] == ["hub"]
    run("credential", "rm", "hub")
    made = run("webhook", "create", RECEIVER, "--json")[0]["id"]
    message = run("webhook", "test", made, "--json")[0]["id"]
    assert run("webhook", "message", message, "--json")[0]["id"] == message
    assert run("webhook", "redeliver", message)[0] == message
    for words in (
        ["ls"],
        ["show", made],
        ["update", made, "--description", "x"],
        ["rotate", made],
        ["deliveries", made],
    ):
        run("webhook", *words, "--json")
    run("webhook", "replay", made, "--since", "2026-01-01", "--json")
    run("webhook", "rm", made)


def test_a_consumers_project_runs(client: lathe.Client, tmp_path: Path) -> None:
    run = [sys.executable, "-m", "consumer", str(tmp_path / "out")]
    done = subprocess.run(run, capture_output=True, text=True, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["results"]["bytes"] == said["size"] == 3_000_000
    assert said["refused"][0] == "/chain/0/scheme"
    assert said["statuses"] == ["succeeded", "succeeded"]
    assert said["numbers"] == list(range(1, len(said["numbers"]) + 1))
    assert {"0-fetch succeeded", "1-ptq succeeded", "stage_finished"} <= set(said["stages"])
    assert said["hook"][0] == 400
    assert (tmp_path / "out/config.json").is_file()


@pytest.mark.parametrize("name", ["events", "logs"])
def test_a_stream_whose_connection_is_cut_goes_on_without_a_gap(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    hold = tmp_path / "hold"
    hold.touch()

    async def follow(proxy: Proxy, other: lathe.AsyncClient, client: lathe.Client) -> tuple[list[Any], list[Any]]:
        job = client.jobs.create(recipe(hold=str(hold)))
        until(hold.with_suffix(".pid").exists)
        options = {"stream": True} if name == "events" else {"follow": True}
        one = getattr(job, name)(**options)
        two = getattr(await other.jobs.get(job.id), name)(**options)
        heard, also = [next(one)], [await anext(two)]
        proxy.reset()
        hold.unlink()
        heard += list(one)
        also += [line async for line in two]
        assert sent.count(("GET", f"/v1/jobs/{job.id}/{name}")) >= 4, "neither stream was opened again"
        return heard, also

    async def use() -> tuple[list[Any], list[Any]]:
        with Proxy(port_of(stack)) as proxy:
            url = f"http://127.0.0.1:{proxy.port}"
            async with lathe.AsyncClient(url, stack.api_key) as other:
                with lathe.Client(url, stack.api_key) as client:
                    return await follow(proxy, other, client)

    with recorded(monkeypatch) as sent:
        heard, also = asyncio.run(use())
    assert heard == also
    assert [line.seq for line in heard] == list(range(1, len(heard) + 1))
    if name == "logs":
        assert "held no longer" in heard[-1].text


@pytest.mark.parametrize("kind", [lathe.Client, lathe.AsyncClient])
def test_a_download_whose_connection_is_cut_goes_on_where_it_was(
    client: lathe.Client,
    stack: Stack,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    kind: type[lathe.Client | lathe.AsyncClient],
) -> None:
    job = client.jobs.create(recipe()).result(timeout=60)
    seen: list[int] = []

    async def use() -> tuple[Path, ...]:
        with Proxy(port_of(stack)) as proxy:
            other = kind(f"http://127.0.0.1:{proxy.port}", stack.api_key)
            bound: Any = await settled(other.jobs.get(job.id))
            proxy.cut_answer(80_000)
            paths = await settled(
                bound.download(
                    tmp_path, on_progress=lambda item, done: seen.append(done) if "weights" in item.path else None
                )
            )
            await settled(other.close())
            return tuple(paths)

    with recorded(monkeypatch) as sent:
        paths = asyncio.run(use())
    assert {path.name for path in paths} >= {"weights.bin", "manifest.json"}
    assert (tmp_path / "sub/weights.bin").read_bytes() == b"w" * 100_000
    assert sent.count(("GET", f"/v1/jobs/{job.id}/artifacts/sub/weights.bin")) == 2
    assert seen == sorted(seen), "what had come was not fetched again"


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


def submitted(client: lathe.Client) -> bool:
    try:
        return client.jobs.create(recipe()).status == "queued"
    except (lathe.ServerError, lathe.ConnectionFailed):
        return False


def program_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
    except OSError:  # it ended while we looked
        return b""


def last_seq(client: lathe.Client, job_id: str) -> int:
    return [event.seq for event in client.jobs.events(job_id)][-1]
