"""A whole run with a draft that is trained: quantized, drafted for, exported, measured, and compared with later."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.engine_runs import Ran, recipe_for, run_here
from fixtures.tiny_models import MakeModel
from safetensors.torch import load_file, save_file

from optcore.draft_document import load_draft_document
from optcore.draft_made import read_made
from optcore.engine import fetch
from optcore.errors import RecipeError
from optcore.events import Metric
from optcore.frozen import digest_of
from optcore.plan import stage_names
from optcore.recipe import recipe_from

torch.set_num_threads(1)
PTQ = {"technique": "ptq", "scheme": "int4", "rounding": "nearest", "scale_search": "max", "smoothing": "none"}
TEXT = {"batch": 4, "sequence_length": 32, "data": {"kind": "text"}, "validation": {"samples": 4, "every": 4}}
DRAFT = {"technique": "draft", "steps": 4, "tokens": 3, "unroll": 2, "features": "kept", "vocabulary": 500, **TEXT}
ACCEPTANCE = {"evaluator": "acceptance", "prompts": 4, "prompt_tokens": 16, "new_tokens": 16, "tokens": 3}
DENSE = {"format": "dense"}


def run(model: Path, folder: Path, target: dict[str, Any], *chain: dict[str, Any], **acceptance: Any) -> Ran:
    return run_here(recipe_for(model, *chain, target=target, evaluate=[{**ACCEPTANCE, **acceptance}]), folder, "out")


def rows_of(ran: Ran) -> dict[str, float]:
    return {row["name"]: row["result"] for row in ran.report()["measurements"]}


def measured_in(ran: Ran) -> list[str]:
    """Stages that measured the draft."""
    metrics = (event for event in ran.events if isinstance(event, Metric))
    return [metric.stage for metric in metrics if metric.name == "acceptance_length_greedy"]


def noticed(ran: Ran, part: str) -> list[str]:
    return [notice for notice in ran.report()["notices"] if part in notice]


def spoken(model: Path, folder: Path, loud: float) -> Path:
    """The model with its logits that many times as large."""
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] *= loud
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def becoming(model: Path) -> dict[str, Any]:
    """An entry after which the chain's model is that one."""
    return {"technique": "merge", "weight": 0, "compare": False, "others": [{"model": {"path": str(model)}}]}


def measured_only(draft: Path) -> dict[str, Any]:
    return {"technique": "draft", "steps": 0, "tokens": 3, "start": {"path": str(draft)}}


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
    rows = rows_of(drafted)
    for name in ("acceptance_length", "ngram_length"):
        for how in ("greedy", "sampled"):
            assert 1 <= rows[f"{name}_{how}"] <= 4
    for batch in (1, 2):
        assert rows[f"draft_cost_{batch}"] > 0
        for how in ("greedy", "sampled"):
            assert rows[f"predicted_speedup_{how}_{batch}"] > 0
            assert rows[f"draft_speedup_{how}_{batch}"] > 0
    assert 0 < rows["draft_coverage"] < 1
    assert not noticed(drafted, "measured before"), "the model is what it was"
    series = {one["name"] for one in report["series"]}
    assert {"2-draft-loss", "2-draft-refused", "draft-survival-greedy", "n-grams-survival-sampled"} <= series


def test_a_draft_that_is_last_is_measured_once(drafted: Ran) -> None:
    assert tuple(drafted.stages) == stage_names(drafted.recipe)
    assert measured_in(drafted) == ["4-evaluate"]
    rows = rows_of(drafted)
    made = read_made(drafted.out / "draft")
    assert made
    asked = made.asked
    assert (asked.count, asked.prompts, asked.prompt_tokens, asked.new_tokens) == (3, 4, 16, 16)
    assert (asked.temperature, asked.top_k, asked.top_p, asked.seed) == (1, None, None, drafted.recipe.seed)
    for how, found in (("greedy", made.greedy), ("sampled", made.sampled)):
        assert found.tau == rows[f"acceptance_length_{how}"]
        assert 1 <= found.interval.low <= found.tau <= found.interval.high <= 4


def small(model: Path, folder: Path, positions: int) -> Path:
    """The model with fewer positions."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": positions}))
    return folder


def test_texts_that_the_model_does_not_hold_are_refused_before_any_work(tiny_model: MakeModel, tmp_path: Path) -> None:
    model = small(tiny_model("Llama"), tmp_path / "small", 96)
    document = recipe_for(model, PTQ, DRAFT, evaluate=[{**ACCEPTANCE, "new_tokens": 96}])
    with pytest.raises(RecipeError, match="the model holds 96 tokens, and 96 are to be written") as caught:
        fetch(recipe_from(document), tmp_path / "work", lambda _: None)
    assert caught.value.field == "/evaluate/0/new_tokens"


def test_a_small_model_writes_as_much_as_it_holds(tiny_model: MakeModel, tmp_path: Path) -> None:
    model = small(tiny_model("Llama"), tmp_path / "small", 24)
    ngram = {"technique": "draft", "method": "ngram"}
    ran = run_here(recipe_for(model, ngram, target=DENSE), tmp_path, "out")
    assert rows_of(ran)["ngram_length_greedy"] >= 1


def test_engines_are_told_of_the_draft(drafted: Ran) -> None:
    said = {notes["engine"].split()[0].lower(): notes for notes in drafted.document("report.json")["deployment"]}
    flags = {setting["name"]: setting["value"] for setting in said["vllm"]["settings"]}
    assert json.loads(flags["--speculative-config"]) == {
        "method": "eagle3",
        "model": "draft",
        "num_speculative_tokens": 3,
    }


@pytest.fixture(scope="module")
def sharper(tiny_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model that hardly prefers any token nearly every guess will do; of this one that is over."""
    return spoken(tiny_model("Llama"), tmp_path_factory.mktemp("sharper") / "model", 30)


def test_a_draft_whose_model_changes_in_the_chain_lost_touch(
    drafted: Ran, tiny_model: MakeModel, sharper: Path, tmp_path: Path
) -> None:
    chain = measured_only(drafted.out / "draft"), becoming(sharper)
    ran = run(tiny_model("Llama"), tmp_path, DENSE, *chain, timed=False, tokens=2, temperature=0.9)
    assert tuple(ran.stages) == stage_names(ran.recipe)
    assert tuple(ran.stages) == ("0-fetch", "1-draft", "1-draft-measure", "2-merge", "3-export", "4-evaluate")
    assert measured_in(ran) == ["1-draft-measure", "4-evaluate"]
    (said,) = noticed(ran, "at temperature 0.9, the draft leaves")
    assert said.endswith("measured before: train it again on this one")
    before = float(said.split("left ")[1].split()[0])
    assert rows_of(ran)["acceptance_length_sampled"] < 0.9 * before
    made = read_made(ran.out / "draft")
    assert made
    assert made.sampled.tau == rows_of(ran)["acceptance_length_sampled"], "how it does on the model that it ships with"
    curves = [curve["name"] for curve in ran.document("report.json")["series"]]
    assert len(curves) == len(set(curves)), "of the result alone"


def test_what_quantizes_behind_a_draft_comes_after_its_measurement(
    drafted: Ran, tiny_model: MakeModel, tmp_path: Path
) -> None:
    served = {"format": "compressed-tensors"}
    ran = run(tiny_model("Llama"), tmp_path, served, measured_only(drafted.out / "draft"), PTQ, timed=False, prompts=2)
    assert tuple(ran.stages) == stage_names(ran.recipe)
    assert tuple(ran.stages) == ("0-fetch", "1-draft", "1-draft-measure", "2-ptq", "3-export", "4-evaluate")
    assert measured_in(ran) == ["1-draft-measure", "4-evaluate"]


def test_a_later_job_is_compared_with_the_one_that_made_the_draft(drafted: Ran, sharper: Path, tmp_path: Path) -> None:
    draft = drafted.out / "draft"
    ran = run(sharper, tmp_path / "same", DENSE, measured_only(draft), timed=False)
    assert measured_in(ran) == ["3-evaluate"]
    before = read_made(draft)
    assert before
    (said,) = noticed(ran, "at temperature 1, the draft leaves")
    assert f"left {before.sampled.tau:.2f} where it was measured before" in said
    assert said.endswith("train it again on this one")
    made = read_made(ran.out / "draft")
    assert made
    assert (made.asked, made.sampled.tau) == (before.asked, rows_of(ran)["acceptance_length_sampled"])
    other = run(sharper, tmp_path / "other", DENSE, measured_only(draft), timed=False, tokens=2)
    assert not noticed(other, "measured before"), "something else was asked"


def test_a_draft_is_compared_with_how_it_did_when_it_was_made(
    drafted: Ran, tiny_model: MakeModel, sharper: Path, tmp_path: Path
) -> None:
    """Brought to another model first: what it does there is no news, where what it was made for is at hand."""
    draft = drafted.out / "draft"
    before = read_made(draft)
    assert before
    back = run(sharper, tmp_path / "back", DENSE, measured_only(draft), becoming(tiny_model("Llama")), timed=False)
    assert measured_in(back) == ["1-draft-measure", "4-evaluate"]
    assert not noticed(back, "measured before"), "it is the model that the draft was made for, but for its rounding"
    away = run(tiny_model("Llama"), tmp_path / "away", DENSE, measured_only(draft), becoming(sharper), timed=False)
    (said,) = noticed(away, "at temperature 1, the draft leaves")
    assert f"left {before.sampled.tau:.2f} where it was measured before" in said


def test_a_draft_that_cannot_be_measured_yet_fails_no_job(drafted: Ran, tiny_model: MakeModel, tmp_path: Path) -> None:
    """Where all tokens are alike the first one is the likeliest, and ends the text."""
    silent = spoken(tiny_model("Llama"), tmp_path / "silent", 0)
    chain = measured_only(drafted.out / "draft"), becoming(tiny_model("Llama"))
    ran = run(silent, tmp_path, DENSE, *chain, timed=False)
    assert noticed(ran, "the draft was not measured before the model changes: the model ends every text at once")
    assert measured_in(ran) == ["4-evaluate"]
