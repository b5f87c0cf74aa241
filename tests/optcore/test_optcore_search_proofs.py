"""The acceptance of objective jobs: a front without a dominated point, for at most 60 % of what its chains cost apart.

Seven chains share pruning and distillation of the model that ships with Lathe; some of them cannot be on the front.
Their stages are done in this process, so that its processor time is theirs: what else the machine does counts for none.
"""

import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from fixtures.whole_runs import walk

from optcore.events import AnyEvent, RunFailed, StageFinished
from optcore.manifest import read_manifest
from optcore.report import Candidate, Report

pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.timeout(3600)]

SHARED = [
    {"technique": "prune", "depth": 1, "compare": False},
    {"technique": "distill", "steps": 20, "batch": 8, "sequence_length": 64, "learning_rate": 5.0e-4},
]
PLAIN = {"technique": "ptq", "rounding": "nearest", "smoothing": "none", "scale_search": "max"}
CANDIDATES: list[list[dict[str, Any]]] = [
    [{**PLAIN, "scheme": "fp8_dynamic"}],
    [{**PLAIN, "scheme": "int8"}],
    [{"technique": "ptq", "scheme": "int4_g32", "rounding": "nearest"}],
    [{**PLAIN, "scheme": "int4_g32"}],
    [{**PLAIN, "scheme": "nvfp4"}],
    [{**PLAIN, "scheme": "int3_g32"}],
    [{**PLAIN, "scheme": "int2_g16"}],
]
FIDELITY = {"evaluator": "fidelity", "samples": 16, "sequence_length": 64}
THROUGHPUT = {"evaluator": "throughput", "prompt_tokens": 16, "new_tokens": 32}
MOST_OF_APART = 0.6


def _document(model: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model": {"path": str(model)},
        "calibration": {"dataset": "python-stdlib", "samples": 16, "sequence_length": 64},
        "chain": SHARED,
        "evaluate": [FIDELITY],
        **changes,
    }


class Done(NamedTuple):
    """A run in a fresh work folder."""

    events: list[AnyEvent]
    out: Path
    cpu_seconds: float
    seconds: float
    """Of its stages, as they were timed."""


def _run(document: dict[str, Any], folder: Path) -> Done:
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(document))
    started = time.process_time()
    events = walk(folder / "recipe.yaml", folder / "out", folder / "work")
    cpu_seconds = time.process_time() - started
    assert not isinstance(events[-1], RunFailed), events[-1]
    seconds = sum(event.seconds for event in events if isinstance(event, StageFinished) and not event.cached)
    return Done(events, folder / "out", cpu_seconds, seconds)


def _beats(one: Candidate, other: Candidate) -> bool:
    """Pareto dominance as textbooks have it, nothing taken from the code under test."""
    assert one.weight_bytes
    assert other.weight_bytes
    assert one.kl is not None
    assert other.kl is not None
    ours = (one.weight_bytes, one.kl, -(one.tokens_per_second or 0))
    theirs = (other.weight_bytes, other.kl, -(other.tokens_per_second or 0))
    return all(a <= b for a, b in zip(ours, theirs, strict=True)) and ours != theirs


def test_a_front_is_cheaper_than_its_chains_apart(stdlib_model: Path, tmp_path: Path) -> None:
    _run(_document(stdlib_model, chain=CANDIDATES[0]), tmp_path / "imports")
    goal = {"max_kl": 1.0, "candidates": CANDIDATES}
    raced = _run(_document(stdlib_model, objective=goal), tmp_path / "race")
    front = Report.model_validate_json((raced.out / "report.json").read_text()).front
    assert front
    chains = [[*SHARED, *chain] for chain in CANDIDATES]
    apart = [_run(_document(stdlib_model, chain=chain), tmp_path / f"apart{n}") for n, chain in enumerate(chains)]
    print("\ncandidate  status         bytes       KL  stages run/shared  race s  alone s  chain")
    for one, alone in zip(front.candidates, apart, strict=True):
        print(
            f"{one.name:<9}  {one.status:<9} {one.weight_bytes or 0:>9,}  {one.kl or 0:>7.4f}  {one.stages_run:>8} /"
            f" {one.stages_reused:<6}  {one.seconds:>6.1f}  {alone.seconds:>7.1f}  {one.chain}"
        )
        if one.why:
            print(f"           {one.why}")
    print(f"stages run {front.stages_run}, reused {front.stages_reused}")
    cpu, cpu_apart = raced.cpu_seconds, sum(each.cpu_seconds for each in apart)
    print(f"processor: the race {cpu:.1f} s, its chains apart {cpu_apart:.1f} s: {cpu / cpu_apart:.1%}")
    clock = sum(each.seconds for each in apart)
    print(f"clock, on a busy machine: {raced.seconds:.1f} s and {clock:.1f} s: {raced.seconds / clock:.1%}")
    inferred = front.seconds_apart_inferred
    print(f"by its own ledger apart: {front.seconds_apart:.1f} s, {inferred:.1f} of it inferred")
    on_front = [one for one in front.candidates if one.status in ("winner", "front")]
    assert not [(a.name, b.name) for a in on_front for b in on_front if _beats(a, b)]
    assert front.stages_reused >= (len(CANDIDATES) - 1) * len(SHARED)
    assert {one.status for one in front.candidates} > {"winner", "stopped"}
    assert cpu <= MOST_OF_APART * cpu_apart
    won = next(place for place, one in enumerate(front.candidates) if one.status == "winner")
    assert read_manifest(apart[won].out).digest == read_manifest(raced.out).digest, (
        "the same checkpoint as the chain makes by itself"
    )


def test_a_goal_about_speed_finishes_all_and_measures_it(stdlib_model: Path, tmp_path: Path) -> None:
    """Nobody is stopped by size and quality, though the second is surely worse than the first at the same size."""
    chains = [[{**PLAIN, "scheme": "int4_g32"}], [{**PLAIN, "scheme": "int4_g32", "kv_cache": "fp8"}]]
    goal = {"min_tokens_per_second": 0.5, "minimize": "seconds_per_token", "candidates": chains}
    document = _document(stdlib_model, chain=[], objective=goal, evaluate=[FIDELITY, THROUGHPUT])
    out = _run(document, tmp_path / "race").out
    front = Report.model_validate_json((out / "report.json").read_text()).front
    assert front
    print("\n" + "\n".join(f"{one.name} {one.status} {one.tokens_per_second} tokens/s" for one in front.candidates))
    speeds = [one.tokens_per_second for one in front.candidates]
    assert None not in speeds
    assert [goal.met for goal in front.goals] == [True]
    won = next(one for one in front.candidates if one.status == "winner")
    assert won.tokens_per_second == max(one.tokens_per_second or 0 for one in front.candidates if not one.dominated_by)
