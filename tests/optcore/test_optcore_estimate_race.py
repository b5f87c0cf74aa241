"""What a recipe that stands for several chains will take: each candidate, what they share once, what is too much."""

from pathlib import Path
from typing import Any

import pytest

from optcore.estimate.document import Estimate, Machine
from optcore.estimate.estimate import estimate
from optcore.estimate.facts import ModelFacts, from_folder
from optcore.recipe import recipe_from

PRUNE = {"technique": "prune", "depth": 1}
SMALL = {"calibration": {"dataset": "python-stdlib", "samples": 4, "sequence_length": 64}}


@pytest.fixture
def document(stdlib_model: Path) -> dict[str, object]:
    candidates = [[{"technique": "ptq", "scheme": scheme}] for scheme in ("fp8_dynamic", "int4")]
    return {"model": {"path": str(stdlib_model)}, "chain": [PRUNE], "objective": {"candidates": candidates}, **SMALL}


def test_what_candidates_share_is_counted_once(stdlib_model: Path, document: dict[str, object]) -> None:
    facts, machine = from_folder(stdlib_model), Machine(cores=2)
    found = estimate(recipe_from(document), facts, machine)
    names = [stage.stage for stage in found.stages]
    assert len(names) == len(set(names))
    assert len([name for name in names if name.endswith("-0-fetch")]) == 1
    assert len([name for name in names if name.endswith("-1-prune")]) == 1
    assert len([name for name in names if name.endswith("-2-ptq")]) == 2
    chains = [
        estimate(recipe_from({**document, "objective": None, "chain": [PRUNE, one]}), facts, machine)
        for one in ({"technique": "ptq", "scheme": "fp8_dynamic"}, {"technique": "ptq", "scheme": "int4"})
    ]
    assert max(one.seconds for one in chains) < found.seconds < sum(one.seconds for one in chains)
    assert found.host_memory_bytes == max(one.host_memory_bytes for one in chains)


def test_a_chain_that_does_not_fit_is_a_problem(stdlib_model: Path, document: dict[str, object]) -> None:
    wrong = {**document, "objective": {"candidates": [[{"technique": "qad", "steps": 5}], [PRUNE]]}}
    found = estimate(recipe_from(wrong), from_folder(stdlib_model), Machine(cores=2))
    assert not found.fits
    assert found.problems[0].field.startswith("/objective/candidates/0")


MB = 10**6
PTQS = [[{"technique": "ptq", "scheme": scheme}] for scheme in ("int8", "int4", "int4_g32", "nvfp4", "mxfp4", "fp8")]
TRAINED = [{"technique": "distill", "steps": 5, "sequence_length": 256}, {"technique": "ptq", "scheme": "int8"}]


@pytest.fixture
def facts(stdlib_model: Path) -> ModelFacts:
    return from_folder(stdlib_model)


def told(facts: ModelFacts, machine: Machine | None = None, **changes: Any) -> Estimate:
    document = {"model": {"id": "a/b"}, "objective": {"candidates": PTQS}, **SMALL, **changes}
    return estimate(recipe_from(document), facts, machine or Machine(cores=2))


def begun(found: Estimate) -> set[str]:
    return {stage.stage.partition("-")[0] for stage in found.stages}


def test_as_many_begin_as_the_disk_has_room_for(facts: ModelFacts) -> None:
    assert told(facts, Machine(disk_free_bytes=200 * MB)).problems == ()
    some = told(facts, Machine(disk_free_bytes=20 * MB))
    assert some.fits
    assert "c01" in begun(some) < {f"c{number:02d}" for number in range(1, 7)}
    (said,) = some.problems
    assert (said.field, said.fatal) == ("/objective", False)
    assert f"room for {len(begun(some))} of 6" in said.message
    none = told(facts, Machine(disk_free_bytes=5 * MB))
    assert not none.fits
    assert none.stages == ()
    assert none.problems[-1].fatal


def test_what_is_free_again_after_a_stage_is_not_summed(facts: ModelFacts) -> None:
    long = {"calibration": {"dataset": "python-stdlib", "samples": 100_000, "sequence_length": 256}}
    whole = told(facts, **long)
    scratch = sum(stage.scratch_bytes for stage in whole.stages)
    assert scratch > 0
    assert whole.disk_bytes < sum(stage.disk_bytes for stage in whole.stages) - scratch / 2


def test_a_limit_that_no_early_stop_keeps_is_an_error(facts: ModelFacts) -> None:
    whole = told(facts)
    assert told(facts, limits={"max_run_seconds": round(whole.seconds + 1)}).problems == ()
    (tight,) = told(facts, limits={"max_run_seconds": round(whole.seconds * 0.9)}).problems
    assert (tight.field, tight.fatal) == ("/limits/max_run_seconds", False)
    low = sum(stage.seconds_low for stage in whole.stages if "ptq" in stage.stage)
    (hopeless,) = told(facts, limits={"max_run_seconds": max(1, int(low))}).problems
    assert hopeless.fatal


def test_a_budget_bounds_what_is_expected(facts: ModelFacts) -> None:
    def budgeted(**budget: int) -> Estimate:
        return told(facts, objective={"candidates": PTQS, "budget": budget})

    assert begun(budgeted(candidates=2)) == {"c01", "c02"}
    short = budgeted(seconds=5)
    assert [stage.stage for stage in short.stages] == ["c01-0-fetch", "c01-1-ptq", "c01-2-export", "c01-3-evaluate"]
    first = sum(stage.seconds for stage in short.stages[:2])
    two = budgeted(seconds=round(first) + 1)
    assert begun(two) == {"c01", "c02"}
    assert len([stage for stage in two.stages if "-export" in stage.stage]) == 1, "one is finished whatever it says"
    assert begun(budgeted(candidates=6, seconds=10**6)) == begun(told(facts))


def test_other_results_are_the_winners_alone(facts: ModelFacts) -> None:
    found = told(facts, also=[{"format": "dense"}])
    names = [stage.stage for stage in found.stages]
    assert len([name for name in names if name.endswith("-2-export")]) == 6
    assert len([name for name in names if "-2-export-" in name]) == 1


def test_sizes_are_those_of_each_candidate(facts: ModelFacts) -> None:
    found = told(facts)
    assert [each.candidate for each in found.results] == [f"c{number:02d}" for number in range(1, 7)]
    assert len({each.weight_bytes for each in found.results}) > 3


def test_a_candidate_beyond_a_bound_is_not_expected(facts: ModelFacts) -> None:
    some = told(facts, objective={"candidates": PTQS, "max_bytes": 5 * MB})
    assert begun(some) == {"c02", "c03", "c04", "c05"}
    assert [(each.field, each.fatal) for each in some.problems] == [("/objective", False)] * len(some.problems)
    none = told(facts, objective={"candidates": PTQS, "max_bytes": 1000})
    assert not none.fits
    assert "at most 1 kB" in none.problems[0].message


def test_problems_point_into_the_recipe_that_stands_for_all(facts: ModelFacts) -> None:
    small = Machine(host_memory_bytes=200 * MB)

    def places(**changes: Any) -> set[str]:
        found = told(facts, small, calibration={"samples": 32, "sequence_length": 256}, **changes)
        assert not found.fits
        return {each.field for each in found.problems}

    assert places(objective={"candidates": [PTQS[1], TRAINED]}) == {
        "/objective/candidates/0/0",
        "/objective/candidates/1/0",
    }
    assert places(objective={"max_kl": 0.1}) == {"/objective"}
    sweep = {"/chain/0/scheme": ["int4", "int8"]}
    assert places(objective=None, chain=PTQS[0], sweep=sweep) == {"/sweep"}
    shared = {"technique": "prune", "depth": 1}
    assert places(chain=[shared], objective={"candidates": [PTQS[0], TRAINED]}) <= {
        "/chain/0",
        "/objective/candidates/0/0",
        "/objective/candidates/1/0",
    }


def test_one_that_cannot_begin_is_a_warning_beside_others(facts: ModelFacts) -> None:
    large = [{"technique": "distill", "steps": 5, "batch": 64, "micro_batch": 64, "sequence_length": 2048}, *PTQS[0]]
    found = told(facts, Machine(host_memory_bytes=10**9), objective={"candidates": [large, PTQS[1]]})
    assert found.fits
    assert begun(found) == {"c02"}
    assert found.problems[0].field == "/objective/candidates/0/0"
    assert found.problems[0].message.startswith("c01 (")


def test_further_models_of_candidates_are_counted(facts: ModelFacts) -> None:
    teacher = {**TRAINED[0], "teacher": {"id": "c/d"}}
    document = {"model": {"id": "a/b"}, "objective": {"candidates": [PTQS[0], [teacher, PTQS[0][0]]]}, **SMALL}
    large = facts.with_tensors((*facts.tensors, facts.tensors[0]._replace(name="more.weight", shape=(4096, 4096))))
    asked, machine = recipe_from(document), Machine(cores=2)
    without = estimate(asked, facts, machine)
    found = estimate(asked, facts, machine, others={"/objective/candidates/1/0/teacher": large})
    assert found.of("c02-1-distill").host_memory_bytes > without.of("c02-1-distill").host_memory_bytes  # type: ignore[union-attr]
    assert found.of("c01-1-ptq") == without.of("c01-1-ptq")
