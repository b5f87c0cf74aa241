"""Training inside a run: a chain that is killed goes on to the same bytes, stages are shared, fallbacks train."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fixtures.engine_runs import Ran, is_loss, recipe_for, run_here, run_program

from optcore.errors import RecipeError
from optcore.events import RunFailed, RunFinished
from optcore.plan import stage_names
from optcore.recipe import Recipe, recipe_from

pytestmark = pytest.mark.timeout(300)
PLAIN = {"rounding": "nearest", "scale_search": "max", "smoothing": "none"}
QAD: dict[str, Any] = {
    "technique": "qad",
    "steps": 6,
    "batch": 4,
    "sequence_length": 48,
    "learning_rate": 3e-4,
    "validation": {"samples": 4, "every": 2},
    "save_every": 2,
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def undisturbed(shared: Path, stdlib_model: Path) -> Ran:
    ptq = {"technique": "ptq", "scheme": "nvfp4", **PLAIN}
    return run_here(recipe_for(stdlib_model, ptq, QAD), shared, "whole")


def test_a_chain_killed_in_the_middle_of_training_goes_on_to_the_same_bytes(
    undisturbed: Ran, stdlib_model: Path, tmp_path: Path
) -> None:
    document = recipe_for(stdlib_model, {"technique": "ptq", "scheme": "nvfp4", **PLAIN}, QAD)
    killed = run_program(document, tmp_path, "first", kill_when=lambda event: is_loss(event, 5))
    assert not isinstance(killed.events[-1], RunFinished)
    again = run_here(document, tmp_path, "second")
    assert again.cached["1-ptq"]
    assert again.cached["2-qad-data"]
    assert not again.cached["2-qad"]
    assert min(again.losses) == 5, "it went on from the checkpoint of step 4"
    assert {**killed.losses, **again.losses} == undisturbed.losses
    assert killed.losses[5] == again.losses[5]
    assert again.digest == undisturbed.digest
    print(f"losses {[round(loss, 5) for loss in again.losses.values()]}, digest {again.digest[:16]} both times")


def test_curves_and_what_was_trained_on_are_in_the_result(undisturbed: Ran) -> None:
    report = undisturbed.report()
    series = {one["name"]: one["points"] for one in report["series"]}
    assert [point[0] for point in series["2-qad-kl"]] == [0, 2, 4, 6]
    assert series["2-qad-loss"] == [[step, loss] for step, loss in undisturbed.losses.items()]
    assert report["scheme"] == "NVFP4 W4A4, blocks of 16; distilled for 6 steps"
    assert report["schemes"] == ["nvfp4"]
    (trained_on,) = json.loads((undisturbed.out / "manifest.json").read_text())["trained_on"]
    assert (trained_on["stage"], trained_on["kind"], trained_on["seed"]) == ("2-qad", "text", 0)
    assert trained_on["windows"] == 6 * 4 + 4
    assert len(trained_on["sha256"]) == 64


def test_a_gate_that_fails_takes_training_as_its_fallback_and_the_report_shows_both(
    stdlib_model: Path, tmp_path: Path
) -> None:
    gate = {"metric": "kl", "max": 3.0, "on_fail": "fallback"}
    ptq = {"technique": "ptq", "scheme": "int2", **PLAIN, "gate": gate}
    evaluate = [{"evaluator": "fidelity", "samples": 4, "sequence_length": 48}]
    plain = run_here(
        recipe_for(stdlib_model, ptq | {"gate": gate | {"max": 100.0}, "fallback": [QAD]}, evaluate=evaluate),
        tmp_path,
        "passes",
    )
    (only,) = plain.report()["trials"]
    assert (only["stage"], only["passed"], only["then"]) == ("1-ptq", True, "kept")
    bound = 0.9 * only["value"]
    ran = run_here(
        recipe_for(
            stdlib_model,
            ptq | {"gate": gate | {"max": bound}, "fallback": [QAD, {"scheme": "fp8_dynamic"}]},
            evaluate=evaluate,
        ),
        tmp_path,
        "falls",
    )
    trials = ran.report()["trials"]
    print([(one["stage"], round(one["value"], 4), one["passed"], one["then"]) for one in trials])
    assert [(one["stage"], one["passed"], one["then"]) for one in trials] == [
        ("1-ptq", False, "went on to 1-qad-fallback1"),
        ("1-qad-fallback1", True, "kept"),
    ]
    assert trials[1]["value"] < bound < trials[0]["value"] == only["value"]
    assert ran.cached["1-ptq"]
    assert ran.report()["scheme"].endswith("distilled for 6 steps")
    assert ran.report()["schemes"] == ["int2"]


def test_another_vocabulary_is_refused_before_any_work(shared: Path, stdlib_model: Path) -> None:
    other = shared / "other"
    shutil.copytree(stdlib_model, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[500:502]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    qad = QAD | {"teacher": {"path": str(other)}}
    ran = run_program(recipe_for(stdlib_model, {"technique": "ptq", "scheme": "nvfp4"}, qad), shared, "mismatch")
    last = ran.events[-1]
    assert isinstance(last, RunFailed)
    failure = last.failure
    assert (failure.code, failure.kind, failure.stage) == ("vocabulary_mismatch", "user_error", "0-fetch")
    assert failure.field == "/chain/1/teacher"
    assert "2 of 2048 tokens" in failure.message


class TestPlan:
    def _recipe(self, *chain: dict[str, Any], **more: Any) -> Recipe:
        return recipe_from(recipe_for(Path("model"), *chain, **more))

    def test_stages_that_prepare_come_first(self) -> None:
        recipe = self._recipe({"technique": "ptq", "scheme": "nvfp4"}, QAD | {"teacher_top_k": 8})
        assert stage_names(recipe)[2:5] == ("2-qad-data", "2-qad-teacher", "2-qad")

    @pytest.mark.parametrize(
        ("change", "field", "said"),
        [
            ({"losses": [{"kind": "cross_entropy"}]}, "/chain/1", "looks at a teacher"),
            ({"teacher_top_k": 4, "losses": [{"kind": "reverse_kl"}]}, "/chain/1", "keeps too little"),
            ({"losses": [{"kind": "forward_kl", "temperature": 0}]}, "/chain/1/losses/0/temperature", "greater than 0"),
            ({"micro_batch": 3}, "/chain/1", "must divide batch"),
            ({"learning_rate": -1}, "/chain/1/learning_rate", "greater than 0"),
            ({"data": {"kind": "random", "path": "x.txt"}}, "/chain/1/data", "come from no data set"),
            ({"data": {"path": "x.txt", "dataset": "y"}}, "/chain/1/data", "one of"),
            ({"teacher": "somebody"}, "/chain/1/teacher", "self"),
        ],
    )
    def test_what_contradicts_itself_is_refused(self, change: dict[str, Any], field: str, said: str) -> None:
        with pytest.raises(RecipeError, match=said) as caught:
            self._recipe({"technique": "ptq", "scheme": "nvfp4"}, QAD | change)
        assert caught.value.field.startswith(field)
