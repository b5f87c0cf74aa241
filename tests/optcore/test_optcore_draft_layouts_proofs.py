"""The speculators layout, loaded by vllm-project/speculators itself: its configuration, and every tensor in its place.

speculators is an oracle, no dependency: `pip install '.[oracle-drafts]'`, or name the interpreter of another
environment that has it in SPECULATORS_PYTHON.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.draft_folders import FACTS, HEADS, KNOWN, SIZE, TAPS, WIDTH, eagle3
from safetensors.torch import save_file

from optcore.drafts.folder import write_parts
from optcore.drafts.parts import TargetFacts

_PYTHON = os.environ.get("SPECULATORS_PYTHON") or (sys.executable if importlib.util.find_spec("speculators") else "")
pytestmark = [
    pytest.mark.proof,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not _PYTHON,
        reason="no speculators: install the extra `oracle-drafts`, or set SPECULATORS_PYTHON to an interpreter with it",
    ),
]
_SCRIPT = """
import json, sys
from importlib.metadata import version

import torch
from safetensors.torch import load_file
from speculators import SpeculatorModelConfig
from speculators.models.eagle3.core import Eagle3DraftModel

folder = sys.argv[1]
config = SpeculatorModelConfig.from_pretrained(folder)
model = Eagle3DraftModel.from_pretrained(folder)
held, loaded = load_file(folder + "/model.safetensors"), model.state_dict()
print("\\n" + json.dumps({
    "version": version("speculators"),
    "config": type(config).__name__,
    "normed": config.norm_before_residual,
    "layers": config.eagle_aux_hidden_state_layer_ids,
    "known": config.draft_vocab_size,
    "size": config.target_vocab_size,
    "theta": config.transformer_layer_config.rope_parameters["rope_theta"],
    "tokens": config.speculators_config.proposal_methods[0].speculative_tokens,
    "verifier": config.speculators_config.verifier.name_or_path,
    "kept": config.to_diff_dict()["speculators_version"],
    "without_a_place": sorted(held.keys() - loaded.keys()),
    "not_given": sorted(loaded.keys() - held.keys()),
    "differ": [name for name, one in held.items() if not torch.equal(loaded[name].to(one.dtype), one)],
}))
"""


@pytest.mark.parametrize(("known", "normed"), [(KNOWN, True), (KNOWN, False), (SIZE, True)])
def test_speculators_loads_what_we_write(known: int, normed: bool, tmp_path: Path) -> None:
    target, folder = _target(tmp_path / "target"), tmp_path / "draft"
    write_parts(eagle3(known, normed=normed), folder, "speculators", TargetFacts(FACTS.config, str(target)))
    found = _loaded(folder)
    print(f"\nspeculators {found['version']}: {found}")
    assert found["config"] == "Eagle3SpeculatorConfig"
    assert (found["normed"], found["layers"]) == (normed, [tap + 1 for tap in TAPS])
    assert (found["known"], found["size"], found["theta"], found["tokens"]) == (known, SIZE, 500000.0, 5)
    assert found["verifier"] == str(target)
    assert found["without_a_place"] == []
    assert found["not_given"] == ["embed_tokens.weight", "verifier_lm_head.weight", "verifier_norm.weight"]
    assert found["differ"] == []


def _target(folder: Path) -> Path:
    """What speculators reads of a target: its embeddings, its last norm and its head."""
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({**FACTS.config, "num_attention_heads": HEADS, "hidden_size": WIDTH, "vocab_size": SIZE})
    )
    table, norm = torch.randn(SIZE, WIDTH), torch.ones(WIDTH)
    tensors = {"model.embed_tokens.weight": table, "model.norm.weight": norm, "lm_head.weight": table.clone()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _loaded(folder: Path) -> dict[str, Any]:
    without_ours = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [_PYTHON, "-c", _SCRIPT, str(folder)], capture_output=True, text=True, env=without_ours, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
