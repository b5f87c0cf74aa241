"""The same typed error, with field and remedy, whichever way a bad job comes in: REST, SDK, command line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from fixtures.hub import OTHER_TOKEN
from fixtures.service import Lathe
from fixtures.tiny_models import MakeModel

from lathe import JobFailed, LatheError

pytestmark = [pytest.mark.e2e, pytest.mark.proof, pytest.mark.integration, pytest.mark.timeout(600)]

CHAIN = [{"technique": "ptq", "scheme": "int8"}]
DATA = {"dataset": "python-stdlib", "samples": 2, "sequence_length": 64}


def test_a_typo_is_the_same_error_everywhere(lathe: Lathe, stdlib_model: Path, tmp_path: Path) -> None:
    recipe = {"model": {"path": str(stdlib_model)}, "chain": [{"technique": "ptq", "scheme": "nvfp5"}]}
    over_rest = httpx.post(
        f"{lathe.stack.url}/v1/jobs", json=recipe, headers={"Authorization": f"Bearer {lathe.stack.api_key}"}
    )
    assert over_rest.status_code == 422
    problem = over_rest.json()
    assert problem["errors"][0]["pointer"] == "/chain/0/scheme"
    with pytest.raises(LatheError) as caught:
        lathe.client.jobs.create(recipe)
    over_cli = _lathe_run(recipe, tmp_path)
    for text in (problem["detail"], str(caught.value), over_cli):
        flat = " ".join(text.split())
        assert "unknown format 'nvfp5'; known are fp8, fp8_dynamic, " in flat
        assert "/chain/0/scheme" in flat


@pytest.mark.parametrize(
    ("case", "code", "field"),
    [
        ("pickle_only", "checkpoint_unsafe", "/model/path"),
        ("unknown_architecture", "architecture_unknown", "/model"),
        ("missing_shard", "checkpoint_bad", "/model/path"),
        ("absent_repository", "source_not_found", "/model/id"),
        ("gated_repository", "source_gated", "/model/id"),
    ],
)
def test_a_bad_source_is_the_same_error_everywhere(
    case: str, code: str, field: str, lathe: Lathe, tiny_model: MakeModel, tmp_path: Path
) -> None:
    recipe = {"model": _bad_model(case, lathe, tiny_model, tmp_path), "calibration": DATA, "chain": CHAIN}
    lathe.client.credentials.put("default", OTHER_TOKEN)  # a user who was not let in
    job = lathe.client.jobs.wait(lathe.client.jobs.create(recipe).id, timeout=300)
    assert job.status == "failed"
    assert job.failure is not None
    assert (job.failure.code, job.failure.field, job.failure.kind) == (code, field, "user_error")
    assert job.failure.remedy
    with pytest.raises(JobFailed) as caught:
        lathe.client.jobs.result(job.id)
    assert caught.value.message == job.failure.message
    over_rest = httpx.get(
        f"{lathe.stack.url}/v1/jobs/{job.id}", headers={"Authorization": f"Bearer {lathe.stack.api_key}"}
    ).json()
    assert over_rest["failure"] == json.loads(job.failure.model_dump_json())
    over_cli = " ".join(_lathe_run(recipe, tmp_path, lathe).split())
    assert " ".join(job.failure.message.split()) in over_cli
    assert " ".join(job.failure.remedy.split()) in over_cli


def _bad_model(case: str, lathe: Lathe, tiny_model: MakeModel, folder: Path) -> dict[str, str]:
    if case == "absent_repository":
        return {"id": "me/no-such-model"}
    if case == "gated_repository":
        lathe.hub.put_folder("me/gated", tiny_model("Llama"), gated="manual")
        return {"id": "me/gated"}
    model = shutil.copytree(tiny_model("Llama", max_shard_size="300KB"), folder / "model")
    if case == "pickle_only":
        for path in model.glob("model*.safetensors*"):
            path.unlink()
        (model / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    elif case == "missing_shard":
        sorted(model.glob("model-*.safetensors"))[1].unlink()
    else:
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, "model_type": "nosuch"}))
    return {"path": str(model)}


def _lathe_run(recipe: dict[str, Any], folder: Path, lathe: Lathe | None = None) -> str:
    """What `lathe run` prints when it fails."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    hub = {**lathe.hub.environment, "HF_TOKEN": OTHER_TOKEN} if lathe else {}
    environment = {**os.environ, **hub, "COLUMNS": "400", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "lathe", "run", str(path), "--out", str(folder / "out")]
    done = subprocess.run(
        [*command, "--work", str(folder / "work")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout + done.stderr
