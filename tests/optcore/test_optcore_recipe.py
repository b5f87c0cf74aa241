"""Recipes: what they accept, and what they say when they do not."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optcore.errors import RecipeError
from optcore.evaluate import Fidelity
from optcore.measures import check_measures, gate_evaluator
from optcore.plan import check, stage_names
from optcore.recipe import MAX_RECIPE_bytes, Recipe, load_recipe, parse_recipe, recipe_from
from optcore.report import Task
from optcore.schemes import PRESETS
from optcore.techniques import Gate

GOOD = {"model": {"id": "org/model"}, "chain": [{"technique": "ptq", "scheme": "fp8"}]}


@given(
    scheme=st.sampled_from(list(PRESETS)),
    search=st.sampled_from(["max", "mse"]),
    samples=st.integers(1, 1000),
    name=st.none() | st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=40),
    seed=st.integers(0, 2**31 - 1),
)
def test_yaml_round_trip(scheme: str, search: str, samples: int, name: str | None, seed: int) -> None:
    technique = {"technique": "ptq", "scheme": scheme, "scale_search": search}
    recipe = recipe_from(
        {**GOOD, "chain": [technique], "calibration": {"samples": samples}, "name": name, "seed": seed}
    )
    again = parse_recipe(recipe.to_yaml())
    assert again == recipe
    assert again.digest == recipe.digest


def test_defaults_are_filled_in() -> None:
    recipe = recipe_from(GOOD)
    assert (recipe.calibration.dataset, recipe.calibration.samples) == ("cnn_dailymail", 512)
    assert recipe.target.format == "compressed-tensors"
    assert [type(evaluator).__name__ for evaluator in recipe.evaluate] == ["Fidelity", "Throughput"]


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"modle": {}}, "/modle", "not permitted"),
        ({"chain": []}, "/chain", "at least 1"),
        ({"chain": [{"technique": "ptq"}]}, "/chain/0/scheme", "required"),
        ({"chain": [{"technique": "gptq", "scheme": "fp8"}]}, "/chain/0", "'ptq'"),
        ({"chain": [{"technique": "ptq", "scheme": "fp9"}]}, "/chain/0/scheme", "known are fp8, fp8_dynamic"),
        ({"chain": [{"technique": "ptq", "schem": "fp8"}]}, "/chain/0/schem", "not permitted"),
        ({"model": {"id": "a/b", "path": "c"}}, "/model", "exactly one"),
        ({"model": {"id": "../../etc"}}, "/model/id", "pattern"),
        ({"model": {"id": "a/b", "revision": "-x"}}, "/model/revision", "pattern"),
        ({"target": {"format": "ggml"}}, "/target", "compressed-tensors"),
        ({"calibration": {"samples": 0}}, "/calibration/samples", "greater than or equal to 1"),
        ({"publish": {"repo_id": "a/b", "token": "hf_x"}}, "/publish/token", "not permitted"),
        ({"name": "a\x00b"}, "", "NUL"),
    ],
)
def test_a_mistake_names_its_place_and_the_remedy(changes: dict[str, object], field: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_from({**GOOD, **changes})
    assert caught.value.field == field
    assert words in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a list",
        "model: {",
        "name: 2001-99-99",
        "[" * 5000,
        "a: &a [1]\nb: *a",
        "!!python/object/apply:os.getcwd []",
    ],
)
def test_text_that_is_no_recipe(text: str) -> None:
    with pytest.raises(RecipeError):
        parse_recipe(text)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"#" * (MAX_RECIPE_bytes + 1))
    with pytest.raises(RecipeError, match="larger"):
        load_recipe(path)


def test_quantizing_twice_is_refused_before_any_work() -> None:
    recipe = recipe_from({**GOOD, "chain": [GOOD["chain"][0], GOOD["chain"][0]]})  # type: ignore[index]
    with pytest.raises(RecipeError) as caught:
        check(recipe)
    assert caught.value.field == "/chain/1"
    assert "needs a model that is dense" in caught.value.message


def test_a_fallback_needs_a_list() -> None:
    gate = {"metric": "kl", "max": 0.1, "on_fail": "fallback"}
    with pytest.raises(RecipeError, match="no fallback is listed"):
        recipe_from({**GOOD, "chain": [{"technique": "ptq", "scheme": "fp8", "gate": gate}]})


def test_fallbacks_keep_the_gate_and_the_last_one_stops() -> None:
    gate = {"metric": "kl", "max": 0.1, "on_fail": "fallback"}
    entry = {"technique": "ptq", "scheme": "int4", "gate": gate, "fallback": [{"scheme": "nvfp4"}, {"scheme": "fp8"}]}
    recipe = recipe_from({**GOOD, "chain": [entry]})
    tried = recipe.chain[0].alternatives
    assert [(t.scheme, t.gate.on_fail) for t in tried if t.gate] == [("nvfp4", "fallback"), ("fp8", "stop")]


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        ({"metric": "kl", "min": 0.1}, "kl is better the lower it is: give `max`"),
        ({"metric": "ppl_ratio"}, "ppl_ratio is better the lower it is: give `max`"),
        ({"metric": "agreement", "max": 0.9}, "agreement is better the higher it is: give `min`"),
        ({"metric": "accuracy", "min": 0.9, "max": 1}, "give `min`, and no other bound"),
    ],
)
def test_a_gate_has_the_bound_that_fits_its_metric(gate: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(words)) as caught:
        recipe_from({**GOOD, "chain": [{"technique": "ptq", "scheme": "fp8", "gate": gate}]})
    assert caught.value.field == "/chain/0/gate"


def test_bounds_themselves_pass() -> None:
    low, high = Gate(metric="kl", max=0.5), Gate(metric="agreement", min=0.5)
    assert [low.passes(value) for value in (0.4, 0.5, 0.6)] == [True, True, False]
    assert [high.passes(value) for value in (0.4, 0.5, 0.6)] == [False, True, True]


def test_a_gate_is_measured_by_the_evaluator_that_can() -> None:
    chain = [{"technique": "rotate", "gate": {"metric": "agreement", "min": 0.9}}, GOOD["chain"][0]]  # type: ignore[index]
    labelled = {"evaluator": "classification", "path": "a.csv"}
    recipe = recipe_from({**GOOD, "chain": chain, "evaluate": [{"evaluator": "throughput"}]})
    both = recipe_from({**GOOD, "chain": chain, "evaluate": [labelled, {"evaluator": "fidelity", "samples": 7}]})
    assert gate_evaluator(recipe, "agreement") == Fidelity()
    assert gate_evaluator(both, "kl") == Fidelity(samples=7)
    assert gate_evaluator(both, "agreement", "text-generation") == Fidelity(samples=7)
    assert gate_evaluator(both, "agreement", "text-classification") == both.evaluate[0]
    check_measures(both, "text-classification")


@pytest.mark.parametrize(
    ("metric", "task", "words", "remedy"),
    [
        ("accuracy", None, "nothing in `evaluate` measures accuracy", "add a `classification` entry to `evaluate`"),
        ("agreement", "text-classification", "of a model for text-classification", "add a `classification` entry"),
        ("kl", "text-classification", "measures kl of a model for text-", "gate on `accuracy` or `agreement`"),
    ],
)
def test_a_gate_that_nothing_measures(metric: str, task: Task | None, words: str, remedy: str) -> None:
    gate = {"metric": metric, "max" if metric == "kl" else "min": 0.5}
    recipe = recipe_from({**GOOD, "chain": [{"technique": "ptq", "scheme": "fp8", "gate": gate}]})
    with pytest.raises(RecipeError, match=words) as caught:
        check_measures(recipe, task)
    assert caught.value.field == "/chain/0/gate/metric"
    assert caught.value.remedy.startswith(remedy)


def test_stage_names_sort_in_their_order() -> None:
    gate = {"metric": "kl", "max": 0.1}
    recipe = recipe_from({**GOOD, "chain": [{"technique": "ptq", "scheme": "fp8", "gate": gate}]})
    names = stage_names(recipe)
    assert names == ("0-fetch", "1-ptq", "1-ptq-gate", "2-export", "3-evaluate")
    assert all(a < b for a, b in itertools.pairwise(names))


def test_the_schema_is_closed_everywhere() -> None:
    schema = Recipe.model_json_schema()
    objects = [schema, *schema["$defs"].values()]
    assert all(definition.get("additionalProperties") is False for definition in objects if "properties" in definition)


def test_every_list_of_the_schema_has_an_end() -> None:
    def endless(node: Any, place: str = "") -> Iterator[str]:
        if isinstance(node, dict):
            if node.get("type") == "array" and "maxItems" not in node:
                yield place
            for key, value in node.items():
                yield from endless(value, f"{place}/{key}")
        elif isinstance(node, list):
            for value in node:
                yield from endless(value, place)

    assert list(endless(Recipe.model_json_schema())) == []
