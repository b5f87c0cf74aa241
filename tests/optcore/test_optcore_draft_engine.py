"""A draft inside a run: it lies beside the model in the artifact, and the chain goes on without it."""

from pathlib import Path
from typing import Any

import pytest
from fixtures.engine_runs import Ran, recipe_for, run_here

from optcore.draft_document import load_draft_document
from optcore.events import Notice
from optcore.frozen import digest_of
from optcore.plan import stage_names
from optcore.report import Report
from optcore.report.card import render_card
from optcore.report.page import render_page
from worker.artifact import collect

NGRAM = {"technique": "draft", "method": "ngram", "tokens": 7}
PTQ = {"technique": "ptq", "scheme": "int8", "rounding": "nearest", "scale_search": "max", "smoothing": "none"}
ACCEPTANCE = {"evaluator": "acceptance", "prompts": 2, "prompt_tokens": 8, "new_tokens": 8, "timed": False}


def run(model: Path, folder: Path, name: str, *chain: dict[str, Any]) -> Ran:
    fidelity = {"evaluator": "fidelity", "samples": 1, "sequence_length": 32}
    return run_here(recipe_for(model, *chain, evaluate=[fidelity, ACCEPTANCE]), folder, name)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drafts")


@pytest.fixture(scope="module")
def drafted(shared: Path, stdlib_model: Path) -> Ran:
    return run(stdlib_model, shared, "drafted", NGRAM, PTQ)


def test_the_artifact_holds_the_draft_and_its_digest_covers_it(drafted: Ran) -> None:
    found = load_draft_document(drafted.out / "draft")
    assert found
    assert (found.method, found.tokens, found.steps) == ("ngram", 7, 0)
    manifest = drafted.document("manifest.json")
    rows = {row["path"]: row["sha256"] for row in manifest["files"]}
    assert "draft/draft.json" in rows
    named = ("report.json", "report.html", "README.md", "recipe.yaml")
    content = [(path, sha256) for path, sha256 in rows.items() if path not in named]
    assert manifest["digest"] == digest_of(content)
    assert manifest["digest"] != digest_of([row for row in content if not row[0].startswith("draft/")])
    assert "draft/draft.json" in {file.path for file in collect(drafted.out).files}, "the worker stores it"


def test_the_report_and_the_card_say_that_there_is_a_draft(drafted: Ran) -> None:
    report = drafted.document("report.json")
    assert report["draft"] == {"method": "ngram", "tokens": 7, "parameters": 0, "weight_bytes": 0}
    assert report["scheme"].startswith("speculative draft (ngram), no training needed; ")
    assert "`draft/` holds a speculative draft (`ngram`)" in (drafted.out / "README.md").read_text()
    assert "holds a speculative draft (<code>ngram</code>)" in (drafted.out / "report.html").read_text()


def test_a_draft_with_weights_is_said_with_its_size(drafted: Ran) -> None:
    document = drafted.document("report.json")
    document["draft"] = {"method": "eagle3", "tokens": 5, "parameters": 1234, "weight_bytes": 2468}
    report = Report.model_validate(document)
    assert "It has 1234 parameters in 2.468 kB." in render_card(report)
    assert "It has 1234 parameters in 2.468 kB." in render_page(report)


def test_n_grams_are_measured_once_and_leave_nothing_to_compare_with(drafted: Ran) -> None:
    assert tuple(drafted.stages) == stage_names(drafted.recipe)
    assert tuple(drafted.stages) == ("0-fetch", "1-draft", "2-ptq", "3-export", "4-evaluate")
    assert [path.name for path in (drafted.out / "draft").iterdir()] == ["draft.json"]


def test_a_model_that_changes_after_its_draft_is_said(drafted: Ran) -> None:
    said = [event for event in drafted.events if isinstance(event, Notice) and event.stage == "2-ptq"]
    assert any("changes the model behind the draft" in notice.message for notice in said)
    assert any("changes the model behind the draft" in notice for notice in drafted.document("report.json")["notices"])


def test_the_chain_goes_on_as_if_there_were_no_draft(drafted: Ran, shared: Path, stdlib_model: Path) -> None:
    plain = run(stdlib_model, shared, "plain", PTQ)
    assert plain.stages["1-ptq"].key == drafted.stages["2-ptq"].key
    assert plain.stages["2-export"].key == drafted.stages["3-export"].key
    assert plain.stages["3-evaluate"].key != drafted.stages["4-evaluate"].key, "only what measures it is given it"
    assert plain.document("report.json")["draft"] is None
    assert not (plain.out / "draft").exists()
    assert plain.document("manifest.json")["digest"] != drafted.document("manifest.json")["digest"]
