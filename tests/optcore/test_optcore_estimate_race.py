"""What a recipe that stands for several chains will take: each candidate, what they share once."""

from pathlib import Path

import pytest

from optcore.estimate.document import Machine
from optcore.estimate.estimate import estimate
from optcore.estimate.facts import from_folder
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
