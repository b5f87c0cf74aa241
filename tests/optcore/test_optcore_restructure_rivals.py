"""What each restructuring must beat: the most trivial choice of the same size, and none where it is that itself."""

import pytest
from pydantic import TypeAdapter

from optcore.references import Calibration
from optcore.stage import Inputs, StageTask, TechniqueWork
from optcore.techniques import AnyTechnique, Prune
from optcore.techniques.restructuring import Restructuring

OTHER = {"model": {"path": "/models/b"}}
RIVALS = [
    ({"technique": "prune", "depth": 2}, {"order": "random", "depth": 2}),
    ({"technique": "prune", "experts": {"ratio": 0.5}}, {"order": "random", "experts": {"ratio": 0.5, "size": None}}),
    ({"technique": "prune", "width": 0.25, "depth": 1}, {"order": "random", "width": 0.25, "depth": 1}),
    ({"technique": "sparsify", "method": "alps", "pattern": "2:4"}, {"method": "magnitude", "pattern": "2:4"}),
    ({"technique": "sparsify", "ratio": 0.4, "owl": True}, {"method": "magnitude", "ratio": 0.4, "owl": False}),
    ({"technique": "sparsify", "method": "magnitude"}, {"method": "random"}),
    ({"technique": "low_rank", "allocation": "global", "keep": 0.7}, {"method": "svd", "keep": 0.7}),
    ({"technique": "palettize", "bits": 3, "group": 16}, {"method": "uniform", "bits": 3, "group": 16}),
    ({"technique": "puzzle", "target": {"params": 0.75}, "score": "local"}, {"choice": "uniform", "score": "local"}),
    ({"technique": "hash_share", "ratio": 0.3}, {"method": "modulo", "ratio": 0.3}),
    ({"technique": "tie_layers", "runs": [[1, 3]]}, {"order": "random", "runs": [[1, 3]]}),
    ({"technique": "merge", "method": "ties", "others": [OTHER | {"weight": 2}]}, {"method": "linear"}),
]


@pytest.mark.parametrize(("settings", "expected"), RIVALS)
def test_the_rival_is_trivial_and_of_the_same_size(settings: dict[str, object], expected: dict[str, object]) -> None:
    rival = parsed(settings).rival
    assert rival is not None
    found = rival.model_dump(mode="json")
    assert found | expected == found
    assert parsed(found | {"compare": True}) == parsed(rival.model_copy(update={"compare": True}).model_dump())


@pytest.mark.parametrize(
    "settings",
    [
        {"technique": "prune", "depth": 2, "order": "random"},
        {"technique": "prune", "depth": 0},
        {"technique": "prune", "experts": {"ratio": 0}},
        {"technique": "upcycle", "experts": 4},
        {"technique": "prune", "ffn": {"ratio": 0}},
        {"technique": "sparsify", "method": "random"},
        {"technique": "low_rank", "method": "svd"},
        {"technique": "puzzle", "target": {"params": 1}},
        {"technique": "palettize", "method": "uniform"},
        {"technique": "tie_layers", "ties": 0},
        {"technique": "merge", "others": [OTHER]},
        {"technique": "sparsify", "compare": False},
    ],
)
def test_the_trivial_choice_has_no_rival_and_neither_has_what_nobody_asks_for(settings: dict[str, object]) -> None:
    assert parsed(settings).rival is None


def test_asking_for_no_rival_does_not_repeat_the_work() -> None:
    text = Calibration(dataset="python-stdlib")
    keys = {
        StageTask(
            name="1-prune",
            work=TechniqueWork(technique=Prune(depth=1, compare=compare)),
            inputs=Inputs(calibration=text, seed=0),
        ).key
        for compare in (True, False)
    }
    assert len(keys) == 1


def parsed(settings: dict[str, object]) -> Restructuring:
    """As a recipe would be read."""
    found = TypeAdapter[AnyTechnique](AnyTechnique).validate_python(settings)
    assert isinstance(found, Restructuring)
    return found
