"""What does not fit: which stage is named, what is refused for it, and what is advised, which must help."""

from pathlib import Path
from typing import Any

import pytest
from fixtures.engine_runs import recipe_for, run_here
from test_optcore_estimate import GIB, H200, fatal, large
from test_optcore_estimate_facts import LLAMA_70B
from test_optcore_estimate_memory import BLOCK, INT4, LLAMA_8B

from optcore import foresight
from optcore.errors import OutOfMemory
from optcore.estimate.document import Estimate, Machine, Problem, StageEstimate
from optcore.estimate.estimate import estimate
from optcore.estimate.facts import ModelFacts
from optcore.estimate.problems import MARGIN_gpu, short_of_memory

CHANGES: dict[str, dict[str, Any]] = {
    "use `scope: block`": {"scope": "block"},
    "use `scope: scales`": {"scope": "scales"},
    "use `scope: lora`": {"scope": "lora"},
    "use `scope: lora` with `lora.base: nf4`": {"scope": "lora", "lora": {"base": "nf4"}},
    "keep the answers with `teacher_top_k`": {"teacher_top_k": 32},
    "leave `gradient_checkpointing` on": {"gradient_checkpointing": True},
    "set `micro_batch: 1`": {"micro_batch": 1},
    "halve `sequence_length`": {"sequence_length": 512},
    "train on text as it is with `data: {kind: text}`": {"data": {"kind": "text"}},
    "use `scope: block` without `teacher_top_k`": {"scope": "block", "teacher_top_k": None},
    "keep what the target computes with `features: kept`": {"features": "kept"},
    "name a smaller `vocabulary`": {"vocabulary": 16_000},
    "use `smoothing: none`": {"smoothing": "none"},
    "use `lora.base: nf4`": {"lora": {"base": "nf4"}},
    "use `rounding: nearest`": {"rounding": "nearest"},
    "use `rounding: nearest` with `smoothing: none`": {"rounding": "nearest", "smoothing": "none"},
}
TEACHER = {"technique": "distill", "steps": 10}
HUNGRY = {"micro_batch": 8, "gradient_checkpointing": False}


def told(found: Estimate, lacks: str) -> Problem:
    """What is said of one memory."""
    return next(one for one in found.problems if one.message.split(" of ")[1].startswith(lacks))


@pytest.mark.parametrize(
    ("facts", "gib", "lacks", "chain"),
    [
        (LLAMA_70B, 139, "GPU memory", [INT4, {"technique": "qad", "steps": 10}]),
        (LLAMA_70B, 139, "GPU memory", [INT4, {"technique": "qad", "steps": 10, "scope": "lora"}]),
        (
            LLAMA_70B,
            139,
            "GPU memory",
            [INT4, {"technique": "qad", "steps": 10, "scope": "scales", "teacher_top_k": 9}],
        ),
        (LLAMA_70B, 24, "GPU memory", [INT4, {**BLOCK, **HUNGRY}]),
        (LLAMA_70B, 139, "GPU memory", [INT4, {"technique": "qat", "steps": 10}]),
        (LLAMA_8B, 24, "GPU memory", [TEACHER]),
        (LLAMA_8B, 24, "GPU memory", [{**TEACHER, "scope": "lora", "lora": {"base": "nf4"}, **HUNGRY}]),
        (LLAMA_8B, 24, "GPU memory", [{"technique": "finetune", "steps": 10, "scope": "lora"}]),
        (LLAMA_8B, 8, "GPU memory", [INT4, {**BLOCK, "data": {"kind": "generated"}}]),
        (LLAMA_8B, 8, "GPU memory", [INT4, {"technique": "draft", "steps": 10}]),
        (LLAMA_8B, 139, "memory", [TEACHER]),
        (LLAMA_70B, 1, "GPU memory", [INT4]),
    ],
)
def test_what_is_advised_helps(facts: ModelFacts, gib: int, lacks: str, chain: list[dict[str, Any]]) -> None:
    """Each remedy leaves less of what lacks, and none is what the recipe says already."""
    machine = H200.model_copy(update={"gpu_memory_bytes": gib * GIB, "host_memory_bytes": 64 * GIB})
    more = {} if INT4 in chain else {"target": {"format": "dense"}}
    found = estimate(large(*chain, **more), facts, machine)
    problem = told(found, lacks)
    stage = problem.message.split()[1]
    said = problem.remedy.removesuffix("use a larger worker").removesuffix(", or ")
    assert said, problem
    field = "gpu_memory_bytes" if lacks == "GPU memory" else "host_memory_bytes"
    number = int(problem.field.split("/")[2])
    for text in said.split(", "):
        change = CHANGES[text]
        assert all(chain[number].get(name) != value for name, value in change.items()), text
        changed = [{**one, **change} if place == number else one for place, one in enumerate(chain)]
        then = estimate(large(*changed, **more), facts, machine).of(stage)
        assert then is None or getattr(then, field) < getattr(found.of(stage), field), text


def test_the_most_telling_comes_first() -> None:
    recipe = large(INT4, {"technique": "qad", "steps": 10})
    found = estimate(recipe, LLAMA_70B, H200)
    assert told(found, "GPU memory").remedy.startswith("use `scope: block`, ")


def test_adapters_are_advised_for_a_hosts_checkpoint() -> None:
    """What makes room on the GPU alone is no remedy for it."""
    found = estimate(
        large(TEACHER, target={"format": "dense"}), LLAMA_8B, H200.model_copy(update={"host_memory_bytes": 64 * GIB})
    )
    remedy = told(found, "memory").remedy
    assert "scope: lora" in remedy
    assert "teacher_top_k" not in remedy
    assert "micro_batch" not in remedy


def test_what_the_engine_asks_for_is_refused_before_any_work() -> None:
    """8B with all weights moving beside a teacher, 18 bytes a parameter: the engine counts alike, and its stage would
    fail when the text is ready."""
    recipe = large(TEACHER, target={"format": "dense"})
    asked = 1.1 * 18 * LLAMA_8B.parameters
    for gib, fits in ((asked / GIB - 1, False), (asked / GIB + 1, True)):
        machine = H200.model_copy(update={"gpu_memory_bytes": round(gib * GIB)})
        assert estimate(recipe, LLAMA_8B, machine).fits == fits
    short = H200.model_copy(update={"gpu_memory_bytes": 200 * GIB, "host_memory_bytes": 64 * GIB})
    assert [one.message.split(",")[0] for one in fatal(estimate(recipe, LLAMA_8B, short))] == [
        "stage 1-distill needs about 98.7 GiB of memory"
    ]


def test_a_gpus_memory_that_nobody_measured_refuses_with_a_wide_margin() -> None:
    recipe = large(INT4, BLOCK, evaluate=[])
    needs = estimate(recipe, LLAMA_70B, H200).gpu_memory_bytes
    for share, fits in ((1.05, True), (0.95, False)):
        machine = H200.model_copy(update={"gpu_memory_bytes": round(share * needs / MARGIN_gpu)})
        assert estimate(recipe, LLAMA_70B, machine).fits == fits


def test_a_smaller_stage_may_be_what_is_refused() -> None:
    """The larger one was never seen, and may well take less; the other's kind is known."""
    times = {"seconds": 1, "seconds_low": 1, "seconds_high": 1, "raw_seconds": 1}

    def stage(name: str, gib: int, by_formula: int) -> StageEstimate:
        sizes = {"host_memory_bytes": gib * GIB, "raw_memory_bytes": by_formula * GIB}
        return StageEstimate(stage=name, kind=name, **times, **sizes)

    machine = Machine(host_memory_bytes=10 * GIB)
    (problem,) = short_of_memory(machine, [stage("1-prune", 14, 14), stage("2-ptq", 13, 14)], {})
    assert problem.fatal
    assert problem.message.startswith("stage 2-ptq")


def test_a_refused_run_names_its_entry(stdlib_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foresight, "this_machine", lambda _: Machine(host_memory_bytes=10**8))
    document = recipe_for(stdlib_model, INT4) | {"chain": [{"technique": "prune", "depth": 1}, INT4]}
    with pytest.raises(OutOfMemory) as caught:
        run_here(document, tmp_path, "out")
    assert caught.value.field == "/chain/1"
    assert "stage 2-ptq" in str(caught.value)
