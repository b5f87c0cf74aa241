"""One real job through everything: Hub, REST, queue, worker, engine, webhook, Hub; and what it survives."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures.hub import OWNER_TOKEN
from fixtures.receiver import Receiver
from fixtures.service import Lathe
from fixtures.whole_runs import walk
from huggingface_hub import snapshot_download
from standardwebhooks import Webhook
from transformers import AutoModelForCausalLM

from lathe.models import Job, JobEvent
from optcore.events import RunFinished

pytestmark = [pytest.mark.e2e, pytest.mark.proof, pytest.mark.integration, pytest.mark.timeout(900)]

SOURCE = "me/stdlib-5m"
SMALL = {
    "calibration": {"dataset": "python-stdlib", "samples": 4, "sequence_length": 64},
    "evaluate": [{"evaluator": "fidelity", "samples": 2, "sequence_length": 64}],
}


def test_from_the_hub_to_the_hub(lathe: Lathe, receiver: Receiver, stdlib_model: Path, tmp_path: Path) -> None:
    """Pinned download, quantization, signed webhook, publication; everywhere the same bytes."""
    commit = lathe.hub.put_folder(SOURCE, stdlib_model)
    endpoint = lathe.client.webhook_endpoints.create(receiver.url, events=["job.succeeded", "publish.succeeded"])
    job = lathe.client.jobs.create(
        {
            "model": {"id": SOURCE},
            "chain": [{"technique": "ptq", "scheme": "nvfp4", "kv_cache": "fp8"}],
            "publish": {"repo_id": "me/stdlib-5m-nvfp4"},
            **SMALL,
        }
    )
    job = _published(lathe, lathe.client.jobs.wait(job.id, timeout=600))
    assert job.status == "succeeded", job.failure
    assert job.resolved is not None
    assert job.resolved["model"]["revision"] == commit

    downloaded = tmp_path / "downloaded"
    lathe.client.artifacts.download(job.id, downloaded)
    published = Path(
        snapshot_download(
            "me/stdlib-5m-nvfp4",
            endpoint=lathe.hub.url,
            token=OWNER_TOKEN,
            cache_dir=tmp_path / "cache",
            revision=job.publish.commit,
        )
    )
    assert _contents(published) == _contents(downloaded)
    manifest = json.loads((downloaded / "manifest.json").read_text())
    assert manifest["digest"] == job.artifact_digest
    _, info = AutoModelForCausalLM.from_pretrained(published, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]

    assert endpoint.secret is not None
    types = {_verified(endpoint.secret, *request)["type"] for request in _requests(receiver, 2)}
    assert types == {"job.succeeded", "publish.succeeded"}
    lathe.client.webhook_endpoints.delete(endpoint.id)


def test_kills_cost_no_finished_stage_and_no_byte(lathe: Lathe, stdlib_model: Path, tmp_path: Path) -> None:
    """Kill -9 of the engine child in one stage, of the worker in a later one: the job ends with the same digest."""
    recipe = {"model": {"path": str(stdlib_model)}, "chain": [{"technique": "ptq", "scheme": "int4"}], **SMALL}
    job = lathe.client.jobs.create(recipe)
    _wait_for(lathe, job, "stage_started", "1-ptq")
    os.kill(_engine(lathe), signal.SIGKILL)
    _wait_for(lathe, job, "stage_started", "3-evaluate")
    worker = next(program for program in lathe.stack.programs if program.name == "worker-gpu")
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    job = lathe.client.jobs.wait(job.id, timeout=600)
    assert job.status == "succeeded", job.failure
    assert job.attempt == 3
    events = list(lathe.client.jobs.events(job.id))
    ran = [e.data["stage"] for e in events if e.type == "stage_finished" and not e.data["cached"]]
    assert ran.count("1-ptq") == 1
    assert ran.count("2-export") == 1
    assert any(e.data["stage"] == "1-ptq" and e.data["cached"] for e in events if e.type == "stage_finished")
    assert job.artifact_digest == _digest_without_a_service(recipe, tmp_path)


def _published(lathe: Lathe, job: Job) -> Job:
    deadline = time.monotonic() + 120
    while job.publish.status in ("pending", "uploading"):
        assert time.monotonic() < deadline, job.publish
        time.sleep(0.2)
        job = lathe.client.jobs.get(job.id)
    assert job.publish.status == "published", job.publish
    return job


def _contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".gitattributes")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def _requests(receiver: Receiver, count: int) -> list[tuple[dict[str, str], bytes]]:
    deadline = time.monotonic() + 60
    while len(receiver.requests) < count:
        assert time.monotonic() < deadline, receiver.requests
        time.sleep(0.1)
    return receiver.requests


def _verified(secret: str, headers: dict[str, str], body: bytes) -> dict[str, Any]:
    verified: dict[str, Any] = Webhook(secret).verify(body, {name.lower(): value for name, value in headers.items()})
    return verified


def _wait_for(lathe: Lathe, job: Job, type_: str, stage: str) -> JobEvent:
    for event in lathe.client.jobs.events(job.id, stream=True):
        if event.type == type_ and event.data.get("stage") == stage:
            return event
    raise AssertionError(f"{job.id} ended before {type_} of {stage}")


def _engine(lathe: Lathe) -> int:
    """The process that the worker started: the conductor of the run."""
    data = str(lathe.stack.data_dir)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            words = _command_line(entry)
            if words[1:4] == ["-m", "optcore", "run"] and any(data in word for word in words):
                return int(entry.name)
    raise AssertionError("no engine runs")


def _command_line(entry: Path) -> list[str]:
    try:
        return (entry / "cmdline").read_bytes().decode().split("\0")
    except OSError:  # it ended while we looked
        return []


def _digest_without_a_service(recipe: dict[str, Any], folder: Path) -> str:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    last = walk(folder / "recipe.yaml", folder / "out", folder / "work")[-1]
    assert isinstance(last, RunFinished), last
    digest: str = json.loads((folder / "out" / "manifest.json").read_text())["digest"]
    return digest
