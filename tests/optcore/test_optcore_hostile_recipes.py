"""Recipes whose author means harm, or did not think: refused in time, with a typed error."""

import signal
import time
from typing import Any

import pytest

from optcore.calibration.assignment import Assignment
from optcore.errors import RecipeError
from optcore.plan import check
from optcore.recipe import recipe_from
from optcore.streaming import match
from optcore.techniques import Ptq

_NAMES = [f"model.layers.{number}.mlp.experts.{number}.down_proj" for number in range(4)]


def document(**technique: Any) -> dict[str, Any]:
    return {"model": {"path": "model"}, "chain": [{"technique": "ptq", "scheme": "int4", **technique}]}


def test_an_expression_that_overflows_is_a_mistake_in_the_recipe() -> None:
    with pytest.raises(RecipeError, match="not a regular expression"):
        recipe_from(document(ignore=["re:a{99999999999}"]))


@pytest.mark.timeout(20)
def test_a_recipe_that_is_wrong_everywhere_is_refused_in_time() -> None:
    """Comparing each error with each other one took a minute."""
    chain = [{"technique": f"x{number}"} for number in range(12_000)]
    with pytest.raises(RecipeError, match=r"and 11999 more") as raised:
        recipe_from({"model": {"path": "model"}, "chain": chain})
    assert raised.value.field == "/chain/0"


@pytest.mark.parametrize("place", ["ignore", "overrides"])
def test_an_expression_that_would_take_years_is_stopped(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(match.time_limit.__wrapped__, "__defaults__", (0.3,))
    pattern = r"re:(([\w.])+)+$!"
    entry: Any = pattern if place == "ignore" else {"modules": pattern, "scheme": "fp8"}
    technique = Ptq.model_validate({"scheme": "int4", place: [entry]})
    started = time.monotonic()
    with pytest.raises(RecipeError, match="too long to match"):
        Assignment("int4", technique).check([], _NAMES)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "changes",
    [
        {"chain": [{"technique": "ptq", "scheme": "int4", "fallback": [{"scheme": "fp8"}] * 10_000}]},
        {"evaluate": [{"evaluator": "fidelity"}] * 1_000},
        {"also": [{"format": "awq"}] * 1_000},
    ],
    ids=["fallbacks", "evaluators", "targets"],
)
def test_lists_of_work_have_an_end(changes: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        recipe_from(document() | changes)


@pytest.mark.parametrize("also", [["awq", "awq"], ["compressed-tensors"]])
def test_a_target_named_twice_is_refused_before_any_work(also: list[str]) -> None:
    recipe = recipe_from(document() | {"also": [{"format": name} for name in also]})
    with pytest.raises(RecipeError, match="named twice"):
        check(recipe)


def test_a_fallback_may_not_be_made_beside_itself() -> None:
    gate = {"metric": "kl", "max": 0.1, "on_fail": "fallback"}
    more = {"propagate": "original", "also": ["fp8"], "fallback": [{"scheme": "fp8"}], "gate": gate}
    with pytest.raises(RecipeError, match="made twice"):
        recipe_from(document(**more))


def test_a_time_limit_gives_the_timer_back() -> None:
    before = signal.getitimer(signal.ITIMER_REAL)
    signal.setitimer(signal.ITIMER_REAL, 500)
    try:
        with match.time_limit():
            assert signal.getitimer(signal.ITIMER_REAL)[0] <= match.LIMIT_seconds
        assert signal.getitimer(signal.ITIMER_REAL)[0] > match.LIMIT_seconds
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)
