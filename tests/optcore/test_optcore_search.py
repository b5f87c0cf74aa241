"""Goals and sweeps before any work: which chains they stand for, and what is refused by its field."""

import json
from typing import Any

import pytest

from optcore.errors import RecipeError
from optcore.fetching import fetch_work, pinned
from optcore.paths import with_paths
from optcore.plan import check, fitting
from optcore.recipe import Recipe, parse_recipe, recipe_from
from optcore.search.menu import trains
from optcore.techniques import AutoQuantize, Prune, Ptq, Qad

PTQ = {"technique": "ptq", "scheme": "fp8"}


def recipe(**changes: Any) -> Recipe:
    return recipe_from({"model": {"id": "a/b"}, **changes})


def refusal(**changes: Any) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        check(recipe(**changes))
    return caught.value


def test_recipes_without_a_goal_keep_their_digest() -> None:
    plain = parse_recipe("model: {id: a/b}\nchain: [{technique: ptq, scheme: fp8}]")
    assert plain.digest == "1517fb2ed77d3f295feba572bd6d3f045d1f2b38d10569b92a7d7c40f859ac4c"
    assert not plain.is_race
    assert {"objective", "sweep"}.isdisjoint(plain.model_dump())


@pytest.mark.parametrize("document", [{}, {"chain": []}, {"sweep": {"/seed": [1, 2]}}])
def test_a_recipe_without_a_goal_needs_a_chain(document: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="at least 1") as caught:
        recipe(**document)
    assert caught.value.field == "/chain"
    assert "objective" in caught.value.remedy


def test_a_goal_survives_yaml() -> None:
    asked = recipe(objective={"max_kl": 0.1, "candidates": [[PTQ]]}, sweep={"/seed": [0, 1]})
    assert parse_recipe(asked.to_yaml()) == asked


@pytest.mark.parametrize(
    ("goal", "preference"),
    [
        ({}, "kl"),
        ({"max_bytes": 10}, "kl"),
        ({"max_kl": 0.1}, "bytes"),
        ({"max_kl": 0.1, "max_bytes": 10}, "bytes"),
        ({"max_kl": 0.1, "minimize": "seconds_per_token"}, "seconds_per_token"),
    ],
)
def test_what_is_not_bounded_is_minimized(goal: dict[str, Any], preference: str) -> None:
    found = recipe(objective=goal).objective
    assert found
    assert found.preference == preference


def test_the_planner_goes_from_cheap_to_dear() -> None:
    chains = [contender.recipe.chain for contender in fitting(recipe(objective={"max_kl": 0.1}))]
    assert [trains(chain) for chain in chains] == sorted(trains(chain) for chain in chains)
    first = [chain[0] for chain in chains]
    assert isinstance(first[0], Ptq)
    assert any(isinstance(one, AutoQuantize) for one in first)
    assert any(isinstance(one, Prune) for one in first)
    assert any(isinstance(chain[-1], Qad) for chain in chains)
    assert len({json.dumps([one.model_dump() for one in chain]) for chain in chains}) == len(chains)


def test_the_planner_knows_its_target_and_its_goal() -> None:
    def schemes(**changes: Any) -> set[str]:
        entries = (one for contender in fitting(recipe(**changes)) for one in contender.recipe.chain)
        return {one.scheme for one in entries if isinstance(one, Ptq)}

    def caches(**goal: Any) -> set[str | None]:
        entries = (one for contender in fitting(recipe(objective=goal)) for one in contender.recipe.chain)
        return {one.kv_cache for one in entries if isinstance(one, Ptq)}

    gguf = schemes(objective={"max_kl": 0.1}, target={"format": "gguf"})
    assert {"q8_0", "q4_k_m"} <= gguf
    assert {"fp8_dynamic", "nvfp4"}.isdisjoint(gguf)
    assert schemes(objective={"max_kl": 0.1}, target={"format": "dense"}) == set()
    assert "int2_g16" not in schemes(objective={"max_kl": 0.1})
    assert "int2_g16" in schemes(objective={"max_bytes": 10})
    assert caches(max_kl=0.1) == {None}
    assert caches(min_tokens_per_second=5) == {None, "fp8"}


def test_the_planner_says_when_nothing_fits() -> None:
    error = refusal(objective={"max_kl": 0.1}, chain=[PTQ])
    assert error.field == "/objective"
    assert "dense" in error.message
    assert "objective.candidates" in error.remedy


def test_listed_candidates_follow_on_the_chain() -> None:
    asked = recipe(
        chain=[{"technique": "prune", "depth": 1}],
        objective={"candidates": [[PTQ], [{**PTQ, "scheme": "nvfp4"}, {"technique": "qad"}]]},
    )
    first, second = fitting(asked)
    assert [one.technique for one in second.recipe.chain] == ["prune", "ptq", "qad"]
    assert (first.name, second.name) == ("c01", "c02")
    assert not second.recipe.is_race
    assert second.place("/chain/2/teacher") == "/objective/candidates/1/1/teacher"
    assert second.place("/chain/0/depth") == "/chain/0/depth"
    assert second.place("/model") == "/model"


def test_a_sweep_is_every_combination() -> None:
    asked = recipe(chain=[PTQ], sweep={"/chain/0/scheme": ["nvfp4", "fp8"], "/seed": [0, 1]})
    found = [(one.recipe.chain[0].model_dump()["scheme"], one.recipe.seed) for one in fitting(asked)]
    assert found == [("nvfp4", 0), ("nvfp4", 1), ("fp8", 0), ("fp8", 1)]
    assert "/seed = 1" in fitting(asked)[1].said
    both = recipe(objective={"candidates": [[PTQ], [{**PTQ, "scheme": "int8"}]]}, sweep={"/seed": [0, 1]})
    assert len(fitting(both)) == 4


@pytest.mark.parametrize(
    ("sweep", "field", "said"),
    [
        ({"/chain/1/scheme": ["fp8"]}, "/sweep/~1chain~11~1scheme", "1 entries"),
        ({"/chain/0/skeme": ["fp8"]}, "/sweep/~1chain~10~1skeme", "no 'skeme'"),
        ({"/chain/-/scheme": ["fp8"]}, "/sweep/~1chain~1-~1scheme", "1 entries"),
        ({"/chain/00/scheme": ["nvfp4", "fp8"]}, "/sweep/~1chain~100~1scheme", "none is '00'"),
        ({"/chain/0/scheme": ["int8", "int8"]}, "/sweep/~1chain~10~1scheme/1", "has already"),
        ({"/seed": [1, 2], "/chain/0": [PTQ, {**PTQ, "kv_cache": None}]}, "/sweep/~1chain~10/1", "has already"),
        ({"/model/id": ["c/d"]}, "/sweep/~1model~1id", "a sweep varies"),
        ({"/publish": [None]}, "/sweep/~1publish", "a sweep varies"),
        ({"/chain/0/scheme": ["fp8", "fp7"]}, "/sweep/~1chain~10~1scheme/1", "unknown format"),
        ({"/seed": [0, -1], "/chain/0/scheme": ["fp8"]}, "/sweep/~1seed/1", "greater than or equal to 0"),
        ({"/chain/0/scheme": ["fp8", "q8_0"]}, "/sweep", "cannot hold q8_0"),
        ({"/chain/0": [PTQ], "/chain/0/scheme": ["int8"]}, "/sweep/~1chain~10~1scheme", "lies inside"),
        ({"/seed": list(range(9)), "/chain/0/gptq/block": list(range(9))}, "/sweep", "81 combinations"),
        ({"/calibration/dataset": ["other"]}, "/sweep", "settings, not models or texts"),
        (
            {"/chain": [[{"technique": "distill", "teacher": {"path": "/etc"}}, PTQ]]},
            "/sweep",
            "names '/etc' at /chain/0/teacher/path",
        ),
    ],
)
def test_a_bad_sweep_is_refused_where_it_is_bad(sweep: dict[str, Any], field: str, said: str) -> None:
    error = refusal(chain=[PTQ], sweep=sweep)
    assert error.field == field
    assert said in error.message
    assert error.remedy


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"objective": {"candidates": [[PTQ], [{"technique": "qad"}]]}}, "/objective/candidates/1/0"),
        ({"objective": {"candidates": [[{**PTQ, "scheme": "q8_0"}]]}}, "/objective/candidates/0/0/scheme"),
        ({"objective": {}, "evaluate": [{"evaluator": "throughput"}]}, "/evaluate"),
        ({"objective": {"min_tokens_per_second": 5}, "evaluate": [{"evaluator": "fidelity"}]}, "/objective/min_tokens"),
        ({"objective": {"candidates": [[PTQ] * 16]}, "chain": [{"technique": "prune", "depth": 1}]}, "/objective/cand"),
    ],
)
def test_a_bad_goal_is_refused_where_it_is_bad(changes: dict[str, Any], field: str) -> None:
    error = refusal(**changes)
    assert error.field.startswith(field), error
    assert error.remedy


def test_paths_of_candidates_are_confined_like_all_others() -> None:
    teacher = {"technique": "distill", "teacher": {"path": "here"}}
    asked = recipe(objective={"candidates": [[teacher, PTQ]]})
    seen: list[str] = []
    changed = with_paths(asked, lambda path, place: (seen.append(place), f"/allowed/{path}")[1])
    assert seen == ["/objective/candidates/0/0/teacher/path"]
    assert "/allowed/here" in changed.to_yaml()


def test_commits_are_pinned_where_candidates_name_models() -> None:
    teacher = {"technique": "distill", "teacher": {"id": "c/d"}}
    asked = recipe(objective={"candidates": [[PTQ], [teacher, PTQ]]})
    second = fitting(asked)[1]
    commits = {"/model": "a" * 40, second.place("/chain/0/teacher"): "b" * 40, "/calibration": None}
    again = pinned(asked, commits)
    assert again.model.revision == "a" * 40
    assert fitting(again)[1].recipe.chain[0].models["teacher"].revision == "b" * 40
    assert fitting(again)[0].recipe == fitting(asked)[0].recipe.model_copy(update={"model": again.model})


def test_a_race_without_a_shared_chain_asks_for_its_model_alone() -> None:
    work = fetch_work(recipe(objective={"max_kl": 1}))
    assert (work.model.id, work.alike, work.models) == ("a/b", (), {})
