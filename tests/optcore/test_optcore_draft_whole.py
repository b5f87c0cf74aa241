"""A whole run with a draft that is trained: quantized, drafted for, exported, measured."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fixtures.exporting import run_of
from fixtures.tiny_models import MakeModel
from fixtures.training import training_run
from safetensors.torch import load_file, save_file

from optcore.draft_document import load_draft_document
from optcore.engine import optimize
from optcore.evaluate import Acceptance
from optcore.events import AnyEvent
from optcore.frozen import digest_of
from optcore.recipe import recipe_from
from optcore.techniques import Draft

PTQ = {"technique": "ptq", "scheme": "int4", "rounding": "nearest", "scale_search": "max", "smoothing": "none"}
TEXT = {"batch": 4, "sequence_length": 32, "data": {"kind": "text"}, "validation": {"samples": 4, "every": 4}}
DRAFT = {"technique": "draft", "steps": 4, "tokens": 3, "unroll": 2, "features": "kept", "vocabulary": 500, **TEXT}
ACCEPTANCE = {"evaluator": "acceptance", "prompts": 2, "prompt_tokens": 16, "new_tokens": 16, "tokens": 3}


class Ran(NamedTuple):
    """What a run said, and what it left."""

    events: list[AnyEvent]
    out: Path

    def document(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / name).read_text())
        return found


def run(model: Path, folder: Path, target: dict[str, Any], *chain: dict[str, Any], **acceptance: Any) -> Ran:
    recipe = recipe_from(
        {
            "model": {"path": str(model.absolute())},
            "calibration": {"dataset": "python-stdlib", "samples": 2, "sequence_length": 48},
            "chain": list(chain),
            "target": target,
            "evaluate": [{**ACCEPTANCE, **acceptance}],
        }
    )
    events: list[AnyEvent] = []
    optimize(recipe, folder / "out", folder / "work", events.append)
    return Ran(events, folder / "out")


@pytest.fixture(scope="module")
def drafted(tiny_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    served = {"format": "compressed-tensors"}
    return run(tiny_model("Llama"), tmp_path_factory.mktemp("whole"), served, PTQ, DRAFT, batches=(1, 2))


def test_the_artifact_holds_the_draft(drafted: Ran) -> None:
    names = ["acceptance.json", "config.json", "draft.json", "model.safetensors"]
    assert sorted(path.name for path in (drafted.out / "draft").iterdir()) == names
    document = load_draft_document(drafted.out / "draft")
    assert document
    assert (document.method, document.tokens, document.steps, document.layout) == ("eagle3", 3, 4, "eagle")
    manifest = drafted.document("manifest.json")
    rows = {row["path"]: row["sha256"] for row in manifest["files"]}
    assert {f"draft/{name}" for name in names} <= rows.keys()
    content = [(path, sha256) for path, sha256 in rows.items() if path.startswith("draft/")]
    named = ("report.json", "report.html", "README.md", "recipe.yaml")
    rest = [(path, sha256) for path, sha256 in rows.items() if path not in named and not path.startswith("draft/")]
    assert manifest["digest"] == digest_of([(path, rows[path]) for path in rows if path not in named])
    assert content
    assert manifest["digest"] != digest_of(rest)


def test_the_report_says_how_the_draft_does(drafted: Ran) -> None:
    report = drafted.document("report.json")
    assert report["draft"]["method"] == "eagle3"
    assert report["draft"]["parameters"] > 0
    rows = {row["name"]: row["result"] for row in report["measurements"]}
    for name in ("acceptance_length", "ngram_length"):
        for how in ("greedy", "sampled"):
            assert 1 <= rows[f"{name}_{how}"] <= 4
    for batch in (1, 2):
        assert rows[f"draft_cost_{batch}"] > 0
        for how in ("greedy", "sampled"):
            assert rows[f"predicted_speedup_{how}_{batch}"] > 0
            assert rows[f"draft_speedup_{how}_{batch}"] > 0
    assert 0 < rows["draft_coverage"] < 1
    assert not [notice for notice in report["notices"] if "made for" in notice], "the model is what it was"
    series = {one["name"] for one in report["series"]}
    assert {"2-draft-loss", "2-draft-refused", "draft-survival-greedy", "n-grams-survival-sampled"} <= series


def test_engines_are_told_of_the_draft(drafted: Ran) -> None:
    said = {notes["engine"].split()[0].lower(): notes for notes in drafted.document("report.json")["deployment"]}
    flags = {setting["name"]: setting["value"] for setting in said["vllm"]["settings"]}
    assert json.loads(flags["--speculative-config"]) == {
        "method": "eagle3",
        "model": "draft",
        "num_speculative_tokens": 3,
    }


def test_a_draft_of_a_model_that_changed_is_said_to_have_lost_touch(tiny_model: MakeModel, tmp_path: Path) -> None:
    """Of a model that hardly prefers any token, nearly every guess will do; with sharper logits that is over."""
    model = tiny_model("Llama")
    settings = {name: value for name, value in DRAFT.items() if name not in ("features", "vocabulary")}
    technique = Draft.model_validate(settings)
    made = training_run(technique, model, model, tmp_path)
    technique.apply(made)
    sharper = shutil.copytree(model, tmp_path / "sharper")
    weights = load_file(sharper / "model.safetensors")
    save_file(
        weights | {"lm_head.weight": weights["lm_head.weight"] * 30}, sharper / "model.safetensors", {"format": "pt"}
    )
    said = {}
    for checkpoint in (model, sharper):
        run = run_of(model, checkpoint, tmp_path / "measured")
        run.draft = made.out
        Acceptance(tokens=3, timed=False).measure(run)
        said[checkpoint] = [notice for notice in run.results.get("notices", []) if "made for" in notice]
    assert not said[model]
    assert said[sharper][-1].startswith("at temperature 1, the draft leaves 1.")
    assert said[sharper][-1].endswith("made for: train it again on this one")
