"""Several results of one real job, published where each can be loaded by itself, as its card says."""

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures.hub import OWNER_TOKEN
from fixtures.service import Lathe
from fixtures.tiny_models import MakeModel
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(600)]

RECIPE = {
    "model": {"id": "me/source"},
    "calibration": {"dataset": "python-stdlib", "samples": 2, "sequence_length": 64},
    "chain": [{"technique": "ptq", "scheme": "nvfp4", "also": ["int8"], "propagate": "original"}],
    "evaluate": [{"evaluator": "fidelity", "samples": 2, "sequence_length": 64}],
}
VARIANT = "int8-compressed-tensors"
PLACES = {
    "folder": ("me/by-folder", "main", f"also/{VARIANT}", f'+ "/also/{VARIANT}"'),
    "branch": ("me/by-branch", VARIANT, "", f'revision="{VARIANT}"'),
    "repo": (f"me/by-repo-{VARIANT}", "main", "", f'name = "me/by-repo-{VARIANT}"'),
}


@pytest.mark.parametrize("layout", PLACES)
def test_each_result_can_be_loaded_from_its_place(
    lathe: Lathe, tiny_model: MakeModel, tmp_path: Path, layout: str
) -> None:
    if lathe.hub.store.find("models", "me/source") is None:
        lathe.hub.put_folder("me/source", tiny_model("Qwen2"))
    publish = {"repo_id": f"me/by-{layout}", "layout": layout}
    job = lathe.client.jobs.wait(lathe.client.jobs.create({**RECIPE, "publish": publish}).id, timeout=500)
    assert job.status == "succeeded", job.failure
    while (job := lathe.client.jobs.get(job.id)).publish.status in ("pending", "uploading"):
        time.sleep(0.2)
    assert job.publish.status == "published", job.publish
    repo_id, revision, below, said = PLACES[layout]
    for place, expected in (((f"me/by-{layout}", "main", ""), "nvfp4"), ((repo_id, revision, below), "int8")):
        folder = _download(lathe, *place, tmp_path)
        _, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert (list(info["missing_keys"]), list(info["unexpected_keys"])) == ([], [])
        head = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
        assert (head["base_model"], head["base_model_relation"]) == ("me/source", "quantized")
        assert expected in head["tags"]
    assert said in (folder / "README.md").read_text()


def _download(lathe: Lathe, repo_id: str, revision: str, below: str, folder: Path) -> Path:
    where: dict[str, Any] = {"endpoint": lathe.hub.url, "token": OWNER_TOKEN, "cache_dir": folder / "cache"}
    return Path(snapshot_download(repo_id, revision=revision, **where)) / below
