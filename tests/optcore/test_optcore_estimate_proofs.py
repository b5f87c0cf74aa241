"""The estimate of each demo chain beside what it took, learned from the stages of the other chains alone.

Stages compute in one thread here, so their processor time is what the clock would say of a machine that does nothing
else; that is what is compared, since other work may share this one.
"""

import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from optcore.engine import optimize
from optcore.estimate.document import Estimate, StageCostSeen
from optcore.estimate.estimate import estimate
from optcore.estimate.facts import from_folder
from optcore.estimate.learning import Rates
from optcore.estimate.machine import this_machine
from optcore.events import AnyEvent, StageFinished, StageStarted
from optcore.recipe import Recipe, recipe_from

pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.timeout(7200)]

ROOT = Path(__file__).parent.parent.parent
LONG_seconds = 2.0
SHORTER: dict[str, dict[str, Any]] = {
    "demo": {},
    "prune-distill-int4": {"chain/1": {"steps": 40}},
    "qad": {
        "calibration": {"dataset": "python-stdlib", "samples": 16, "sequence_length": 256},
        "chain/1": {
            "steps": 20,
            "batch": 8,
            "sequence_length": 256,
            "data": {"kind": "text"},
        },
        "evaluate": [{"evaluator": "fidelity", "samples": 16, "sequence_length": 256}],
    },
    "gguf-sizes": {
        "calibration": {"dataset": "python-stdlib", "samples": 16, "sequence_length": 256},
        "chain/0": {"also": ["q8_0", "q5_k_m", "q4_0"]},
        "evaluate": [{"evaluator": "fidelity", "samples": 8, "sequence_length": 256}],
    },
    "speculative-demo": {
        "chain/1": {
            "steps": 40,
            "data": {"kind": "generated", "prompt_tokens": 32, "windows": 160},
            "validation": {"samples": 16, "every": 20},
        },
        "evaluate": [
            {"evaluator": "fidelity", "samples": 16, "sequence_length": 256},
            {"evaluator": "acceptance", "prompts": 8, "prompt_tokens": 32, "new_tokens": 64},
        ],
    },
}
"""The demo chains on the model that ships, some of them with fewer steps: costs of a step are what is foreseen."""


class Took(NamedTuple):
    """A stage as it was."""

    seconds: float
    memory_bytes: int


class Ran(NamedTuple):
    """A chain as it was."""

    recipe: Recipe
    stages: dict[str, Took]
    weight_bytes: dict[str, float]


class _Clock:
    """Processor time of each stage's processes."""

    def __init__(self) -> None:
        self.stages: dict[str, Took] = {}
        self._before = 0.0

    def hear(self, event: AnyEvent) -> None:
        if isinstance(event, StageStarted):
            self._before = _of_children()
        elif isinstance(event, StageFinished) and not event.cached:
            self.stages[event.stage] = Took(_of_children() - self._before, event.peak_memory_bytes)


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _recipe(name: str, model: Path) -> Recipe:
    document = yaml.safe_load((ROOT / "docs" / "recipes" / f"{name}.yaml").read_text())
    document["model"] = {"path": str(model)}
    for place, change in SHORTER[name].items():
        if place.startswith("chain/"):
            document["chain"][int(place.removeprefix("chain/"))] |= change
        else:
            document[place] = change
    return recipe_from(document)


@pytest.fixture(scope="module")
def chains(stdlib_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    """Every demo chain, run by the engine in its stages' own processes."""
    found = {}
    for name in SHORTER:
        folder, clock, recipe = tmp_path_factory.mktemp(name), _Clock(), _recipe(name, stdlib_model)
        optimize(recipe, folder / "out", folder / "work", clock.hear)
        weights = {"": _weights(folder / "out")}
        weights |= {path.name: _weights(path) for path in (folder / "out" / "also").glob("*")}
        found[name] = Ran(recipe, clock.stages, weights)
    return found


def _weights(folder: Path) -> float:
    report = yaml.safe_load((folder / "report.json").read_text())
    return float(next(row["result"] for row in report["measurements"] if row["name"] == "weight_bytes"))


def _told(ran: Ran, model: Path, work: Path, seen: Sequence[StageCostSeen]) -> Estimate:
    return estimate(ran.recipe, from_folder(model), this_machine(work), Rates.from_seen(seen))


def _seen(ran: Ran, model: Path, work: Path) -> list[StageCostSeen]:
    told = _told(ran, model, work, ())
    return [
        StageCostSeen(
            machine=told.machine.kind,
            kind=stage.kind,
            raw_seconds=stage.raw_seconds,
            seconds=ran.stages[stage.stage].seconds,
            raw_memory_bytes=stage.raw_memory_bytes,
            memory_bytes=ran.stages[stage.stage].memory_bytes,
        )
        for stage in told.stages
        if stage.stage in ran.stages
    ]


@pytest.mark.parametrize("learned", [False, True], ids=["nothing_learned", "learned_from_other_chains"])
@pytest.mark.parametrize("name", SHORTER)
def test_a_chain_takes_what_was_foreseen(
    name: str, learned: bool, chains: dict[str, Ran], stdlib_model: Path, tmp_path: Path
) -> None:
    ran = chains[name]
    others = [one for other, each in chains.items() if other != name for one in _seen(each, stdlib_model, tmp_path)]
    found = _told(ran, stdlib_model, tmp_path, others if learned else ())
    print(f"\n{name}, {'learned from the other chains' if learned else 'nothing learned'}")
    print("stage | expected s | took s | ratio | expected MB | took MB | ratio")
    wrong, expected, took = list[str](), 0.0, 0.0
    for stage in found.stages:
        if stage.stage not in ran.stages:
            continue
        own = ran.stages[stage.stage]
        time, memory = stage.seconds / own.seconds, stage.host_memory_bytes / own.memory_bytes
        expected, took = expected + stage.seconds, took + own.seconds
        sizes = f"{stage.host_memory_bytes / 1e6:.0f} | {own.memory_bytes / 1e6:.0f} | {memory:.2f}"
        print(f"{stage.stage} | {stage.seconds:.1f} | {own.seconds:.1f} | {time:.2f} | {sizes}")
        if own.seconds >= LONG_seconds and not 0.5 <= time <= 2:
            wrong.append(f"{stage.stage}: time x{time:.2f}")
        if not 0.7 <= memory <= 1.3:
            wrong.append(f"{stage.stage}: memory x{memory:.2f}")
    print(f"all | {expected:.1f} | {took:.1f} | {expected / took:.2f}")
    for result in found.results:
        weighs = ran.weight_bytes[result.result]
        ratio = result.weight_bytes / weighs
        print(f"result {result.result or 'main'} | {result.weight_bytes} | {weighs:.0f} | {ratio:.3f}")
        if not 0.7 <= ratio <= 1.3:
            wrong.append(f"{result.result}: size x{ratio:.2f}")
    assert wrong == []
    assert 0.5 <= expected / took <= 2
