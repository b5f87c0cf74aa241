"""What a recipe with a draft is, before any work: its settings, its stages, and what does not fit together."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from optcore.acceptance_length import AcceptanceLength, Interval
from optcore.draft_fit import check_drafts
from optcore.draft_made import Asked, Made
from optcore.errors import RecipeError
from optcore.evaluate import Acceptance
from optcore.fetching import commits_of, fetch_work, longest_of, pinned
from optcore.measures import check_lengths, draft_evaluators, evaluators
from optcore.plan import check, measured_between, measured_drafts, stage_names
from optcore.recipe import Recipe, recipe_from
from optcore.stage import EvaluateWork, ExportWork, FeaturesWork, Inputs, StageTask, TechniqueWork
from optcore.techniques import Draft
from optcore.training_fit import check_models

PTQ = {"technique": "ptq", "scheme": "nvfp4"}
DRAFT = {"technique": "draft"}
PRUNE = {"technique": "prune", "depth": 1}
START = {"id": "me/draft"}
LENGTH = AcceptanceLength(tau=2, interval=Interval(low=1.5, high=2.5))


def recipe(*chain: dict[str, Any], **more: Any) -> Recipe:
    return recipe_from({"model": {"path": "m"}, "chain": list(chain), "evaluate": [], **more})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "medusa", "unroll": 2}, "`unroll` is a setting of eagle3 and mtp: leave it out of `medusa`"),
        ({"taps": [4, 1, 2]}, r"`taps` are \[4, 1, 2\]: give \[1, 2, 4\]"),
        ({"method": "block", "taps": [1, 1]}, r"each once, and `taps` are \[1, 1\]: give \[1\]"),
        ({"tokens": 15, "sequence_length": 16}, "raise `sequence_length` to at least 17"),
        ({"method": "mtp", "taps": [1]}, "`taps` is a setting of eagle3 and block"),
        ({"layers": 2}, "`layers` is a setting of block and model: leave it out of `eagle3`"),
        ({"method": "model", "vocabulary": 100}, "`vocabulary`"),
        ({"method": "model", "loss": "lk"}, "`loss`"),
        ({"method": "block", "layout": "modelopt"}, "`layout` is a setting of eagle3: leave it out of `block`"),
        ({"method": "ngram", "start": START}, "`start`"),
        ({"method": "ngram", "steps": 10}, "leave `steps` out"),
        ({"method": "ngram", "learning_rate": 0.1}, "leave `learning_rate` out"),
        ({"method": "model", "start": START, "layers": 2}, "give one"),
        ({"steps": 0}, "nothing would be trained"),
        ({"data": {"kind": "labelled", "path": "a.jsonl"}}, "labelled texts have one label each"),
        ({"processes": 2}, "`draft` trains in one process"),
        ({"gate": {"metric": "kl", "max": 1.0}}, "nothing to gate"),
        ({"scope": "lora"}, "Extra inputs"),
    ],
)
def test_settings_of_another_method_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Draft.model_validate({**DRAFT, **settings})


@pytest.mark.parametrize(
    "settings",
    [{}, {"method": "ngram"}, {"start": START, "steps": 0}, {"method": "model", "steps": 0}, {"method": "block"}],
)
def test_a_draft_written_out_in_full_is_the_same(settings: dict[str, Any]) -> None:
    draft = Draft.model_validate({**DRAFT, **settings})
    assert Draft.model_validate_json(draft.model_dump_json()) == draft
    assert draft.process_count == 1


def test_its_stages_are_its_windows_what_is_kept_and_itself() -> None:
    assert stage_names(recipe(PTQ, DRAFT)) == (
        "0-fetch",
        "1-ptq",
        "2-draft-plan",
        "2-draft-data",
        "2-draft",
        "3-export",
        "4-evaluate",
    )
    kept = stage_names(recipe(PTQ, {**DRAFT, "features": "kept"}))
    assert kept[2:6] == ("2-draft-plan", "2-draft-data", "2-draft-features", "2-draft")
    for nothing in ({"method": "ngram"}, {"start": START, "steps": 0}):
        assert stage_names(recipe(PTQ, {**DRAFT, **nothing}))[1:3] == ("1-ptq", "2-draft")


def test_a_draft_is_measured_at_once_where_the_model_changes_behind_it() -> None:
    assert stage_names(recipe(DRAFT, PTQ)) == (
        "0-fetch",
        "1-draft-plan",
        "1-draft-data",
        "1-draft",
        "1-draft-measure",
        "2-ptq",
        "3-export",
        "4-evaluate",
    )
    ngram = {**DRAFT, "method": "ngram"}
    assert stage_names(recipe(ngram, PTQ)) == ("0-fetch", "1-draft", "2-ptq", "3-export", "4-evaluate")
    assert measured_drafts(recipe({"technique": "sparsify"}, DRAFT, PTQ)) == {2}
    assert not measured_drafts(recipe(PTQ, DRAFT))


@pytest.mark.parametrize("named", [[], [{"evaluator": "acceptance", "prompts": 3, "temperature": 0.5}]])
def test_it_is_asked_there_what_is_asked_of_the_result(named: list[dict[str, Any]]) -> None:
    asked = recipe(DRAFT, PTQ, evaluate=[{"evaluator": "fidelity"}, *named])
    (at_once,), at_last = draft_evaluators(asked), evaluators(asked)[-1]
    assert isinstance(at_last, Acceptance)
    assert at_last.timed
    assert at_once == at_last.model_copy(update={"timed": False})


@pytest.mark.parametrize(("longest", "prompt", "new"), [(192, 64, 128), (96, 32, 64), (11, 3, 8), (9, 1, 8)])
def test_a_small_model_is_asked_for_texts_that_it_holds(longest: int, prompt: int, new: int) -> None:
    (asked,) = draft_evaluators(recipe(DRAFT, PTQ), longest)
    assert isinstance(asked, Acceptance)
    assert (asked.prompt_tokens, asked.new_tokens) == (prompt, new)
    assert Acceptance.model_validate(asked.model_dump()) == asked
    check_lengths(recipe(DRAFT, PTQ), longest)


@pytest.mark.parametrize(
    ("named", "longest", "field"),
    [
        ([{"evaluator": "fidelity"}, {"evaluator": "acceptance", "new_tokens": 96}], 96, "/evaluate/1/new_tokens"),
        ([], 8, "/evaluate"),
    ],
)
def test_texts_that_leave_no_prompt_are_refused(named: list[dict[str, Any]], longest: int, field: str) -> None:
    asked = recipe(DRAFT, PTQ, evaluate=named)
    check_lengths(asked, longest + 1)
    with pytest.raises(RecipeError, match=f"the model holds {longest} tokens") as caught:
        check_lengths(asked, longest)
    assert caught.value.field == field
    assert fetch_work(asked).evaluations[-1] == 64, "there must be text for a prompt"


def test_a_chain_s_result_holds_what_its_student_does() -> None:
    models = {"/chain/0/teacher": {"longest_sequence": 9}, "/chain/0/student": {"longest_sequence": 7}}
    assert longest_of({"longest_sequence": 8, "models": {}}) == 8
    assert longest_of({"longest_sequence": 8, "models": models}) == 7


def test_kept_features_are_shared_by_drafts_that_are_trained_otherwise() -> None:
    one, other = (
        Draft.model_validate({**DRAFT, "features": "kept", "taps": [0, 1, 2], **more})
        for more in ({"steps": 5, "learning_rate": 0.1}, {"unroll": 2, "vocabulary": 10})
    )
    assert FeaturesWork(technique=one.features_alone) == FeaturesWork(technique=other.features_alone)
    tapped = one.model_copy(update={"taps": (0, 1)})
    assert FeaturesWork(technique=tapped.features_alone) != FeaturesWork(technique=one.features_alone)


def test_two_drafts_are_refused_and_a_quantized_one_of_several_formats_too() -> None:
    with pytest.raises(RecipeError, match="two drafts") as caught:
        check(recipe(PTQ, DRAFT, {**DRAFT, "method": "ngram"}))
    assert caught.value.field == "/chain/2"
    with pytest.raises(RecipeError, match="a technique follows") as caught:
        check(recipe({**PTQ, "also": ["fp8"], "propagate": "original"}, DRAFT))
    assert caught.value.field == "/chain/0/also"


@pytest.mark.parametrize(
    "changing",
    [
        {"technique": "prune", "depth": 1},
        {"technique": "prune", "width": 0.2},
        {"technique": "rotate"},
        {"technique": "distill", "student": {"id": "org/small"}},
    ],
)
def test_what_a_draft_reads_stays_behind_it(changing: dict[str, Any]) -> None:
    dense = {"target": {"format": "dense"}}
    with pytest.raises(RecipeError, match="hidden states that the draft before it reads") as caught:
        check(recipe(DRAFT, changing, **dense))
    assert caught.value.field == "/chain/1"
    check(recipe(changing, DRAFT, **dense))
    check(recipe({"technique": "draft", "method": "ngram"}, changing, **dense))
    check(recipe(DRAFT, {"technique": "prune", "ffn": {"ratio": 0.2}}, **dense))


def test_a_draft_stands_anywhere_and_takes_no_form_from_the_model() -> None:
    dense = {"target": {"format": "dense"}}
    check(recipe(DRAFT, PTQ))
    check(recipe(DRAFT, **dense))
    check(recipe({"technique": "sparsify"}, DRAFT, **dense))
    with pytest.raises(RecipeError, match="nothing in the chain quantizes"):
        check(recipe(DRAFT))


def test_the_model_is_not_measured_again_behind_a_draft() -> None:
    assert measured_between(recipe(PRUNE, DRAFT)) == frozenset()
    assert measured_between(recipe(PRUNE, DRAFT, PRUNE)) == {1}
    assert measured_between(recipe(DRAFT, PRUNE, PRUNE)) == {2}


def test_only_what_is_given_the_draft_has_another_key() -> None:
    without = Inputs(checkpoint_digest="c")
    given = without.model_copy(update={"draft": "somewhere", "draft_digest": "d"})
    for work in (EvaluateWork(evaluators=()), ExportWork(export=recipe(PTQ).target)):
        keys = {StageTask(name="n", work=work, inputs=inputs).key for inputs in (without, given)}
        assert len(keys) == 2
        here, there = (given.model_copy(update={"draft": place}) for place in ("/a", "/b"))
        assert StageTask(name="n", work=work, inputs=here).key == StageTask(name="m", work=work, inputs=there).key
    same = {"count": 3, "prompts": 2, "prompt_tokens": 8, "new_tokens": 8, "text": "", "seed": 0}
    asked = Asked.model_validate({**same, "temperature": 1, "top_k": None, "top_p": None})
    compared = (
        given.model_copy(update={"made": made}) for made in (None, Made(asked=asked, greedy=LENGTH, sampled=LENGTH))
    )
    assert len({StageTask(name="n", work=EvaluateWork(evaluators=()), inputs=inputs).key for inputs in compared}) == 2
    assert "draft" not in without.beside
    assert "features" not in without.beside


def test_settings_that_a_draft_computes_with_are_in_its_key() -> None:
    keys = {
        StageTask(name="n", work=TechniqueWork.model_validate({"technique": {**DRAFT, **more}}), inputs=Inputs()).key
        for more in ({}, {"tokens": 4}, {"method": "medusa"}, {"taps": [0, 1, 2]})
    }
    assert len(keys) == 4


def test_a_start_is_fetched_as_a_draft_and_pinned() -> None:
    commit = "a" * 40
    asked = recipe(PTQ, {**DRAFT, "start": START})
    work = fetch_work(asked)
    assert list(work.drafts) == ["/chain/1/start"]
    assert not work.models
    assert not work.is_pinned
    found = {"models": {}, "drafts": {"/chain/1/start": {"revision": commit}}, "texts": {}}
    commits = commits_of({**found, "model_revision": None, "data_revision": None})
    start = pinned(asked, commits).chain[1]
    assert isinstance(start, Draft)
    assert start.start
    assert start.start.revision == commit
    small = fetch_work(recipe(PTQ, {**DRAFT, "method": "model", "start": START}))
    assert list(small.models) == ["/chain/1/start"], "a language model of its own is checked as one"
    assert not small.drafts


@pytest.mark.parametrize(
    ("settings", "said", "field"),
    [
        ({"taps": [1, 6]}, "layer 6, and the model has layers 0 to 5", "taps"),
        ({"method": "model", "layers": 6}, "6 of the model's 6 layers", "layers"),
        ({"vocabulary": 4096}, "4096 tokens, and the model knows 2048", "vocabulary"),
        ({"method": "block", "mask_token": 2048}, "token 2048, and the model knows tokens 0 to 2047", "mask_token"),
    ],
)
def test_what_a_target_lacks_is_said_once_it_is_here(
    stdlib_model: Path, settings: dict[str, Any], said: str, field: str
) -> None:
    asked = recipe(PTQ, {**DRAFT, **settings})
    with pytest.raises(RecipeError, match=said) as caught:
        check_drafts(asked, stdlib_model)
    assert caught.value.field == f"/chain/1/{field}"
    check_drafts(recipe(PRUNE, {**DRAFT, **settings}), stdlib_model)  # not known yet: asked again in its turn


def test_layers_of_a_nested_configuration_are_counted(tmp_path: Path) -> None:
    config = {"model_type": "gemma3", "text_config": {"num_hidden_layers": 4, "vocab_size": 10}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match="layers 0 to 3"):
        check_drafts(recipe({**DRAFT, "taps": [4]}), tmp_path)
    check_drafts(recipe({**DRAFT, "taps": [3]}), tmp_path)


@pytest.mark.parametrize("task", ["fill-mask", "text-classification"])
def test_encoders_have_no_draft(task: str) -> None:
    with pytest.raises(RecipeError, match=f"this one is for {task}") as caught:
        check_models(recipe(DRAFT), {"task": task, "labels": [], "models": {}})
    assert caught.value.field == "/chain/0"
