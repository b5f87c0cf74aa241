"""The engine's program killed while a target writes for its draft, and again while that trains, printing its figures.

A process group ends by SIGKILL twice; the third run ends in the artifact of a run that nobody disturbed. Batches that
were written keep their inode and their time of change, so nobody wrote them again; training goes on behind the step
that was on the disk.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from fixtures.engine_runs import is_loss, recipe_for, run_here, run_program

from optcore.events import AnyEvent, Progress, RunFinished

pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.timeout(1800)]
PTQ = {"technique": "ptq", "scheme": "int4", "rounding": "nearest", "scale_search": "max", "smoothing": "none"}
DRAFT: dict[str, Any] = {
    "technique": "draft",
    "steps": 15,
    "batch": 8,
    "sequence_length": 48,
    "learning_rate": 3e-3,
    "tokens": 3,
    "validation": {"samples": 8, "every": 4},
}
ACCEPTANCE = {"evaluator": "acceptance", "prompts": 2, "prompt_tokens": 16, "new_tokens": 16, "timed": False}
KILLED_AT = 10
"""The step of training whose loss is the last that is heard: the checkpoint of step 8 is on the disk."""
Files = dict[str, tuple[int, int]]


class Journal:
    """What stages that have not ended leave for the process that goes on with them."""

    def __init__(self, work: Path, kind: str) -> None:
        self._parts, self._kind = work / "stages", kind
        self.most: Files = {}
        """The last batches that were seen in the making."""

    def batches(self) -> Files:
        """Inode and time of change in nanoseconds of each batch that the target wrote."""
        found = {path.name: path.stat() for path in self._parts.glob(f"*.part/journal/{self._kind}-*.json")}
        return {name: (one.st_ino, one.st_mtime_ns) for name, one in sorted(found.items())}

    def has(self, event: AnyEvent, count: int) -> bool:
        """Whether the stage that writes says how far it is, and so many batches are on the disk."""
        return _is_writing(event) and len(self.batches()) >= count

    def watch(self, event: AnyEvent) -> None:
        """See what is there while the target writes on."""
        if _is_writing(event):
            self.most = self.batches()

    def step(self) -> int:
        """Of the checkpoint from which training will go on."""
        (found,) = self._parts.glob("*.part/journal/step-????????")
        return int(found.name.removeprefix("step-"))


def _is_writing(event: AnyEvent) -> bool:
    """Before the last batch was said: with that the journal may go."""
    return isinstance(event, Progress) and event.stage == "2-draft-data" and event.done < event.total


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "eagle3", "unroll": 2, "vocabulary": 500, "data": {"kind": "generated", "prompt_tokens": 8}},
        {"method": "block", "layers": 1, "data": {"kind": "answers", "prompt_tokens": 8, "packing": False}},
    ],
    ids=["eagle3", "block"],
)
def test_a_run_killed_in_the_data_stage_and_in_training_ends_in_the_same_bytes(
    settings: dict[str, Any], stdlib_model: Path, tmp_path: Path
) -> None:
    document = recipe_for(stdlib_model, PTQ, {**DRAFT, **settings}, evaluate=[ACCEPTANCE])
    (tmp_path / "undisturbed").mkdir()
    whole = run_here(document, tmp_path / "undisturbed", "whole")

    journal = Journal(tmp_path / "work", settings["data"]["kind"])
    first = run_program(document, tmp_path, "first", kill_when=lambda event: journal.has(event, 2))
    kept = journal.batches()
    assert len(kept) >= 2
    assert "1-ptq" in first.cached
    assert "2-draft-data" not in first.cached

    def in_training(event: AnyEvent) -> bool:
        journal.watch(event)
        return is_loss(event, KILLED_AT)

    second = run_program(document, tmp_path, "second", kill_when=in_training)
    assert second.cached == {"0-fetch": False, "1-ptq": True, "2-draft-plan": True, "2-draft-data": False}
    assert kept.items() < journal.most.items(), "earlier batches were left as they were, and others came to them"
    saved = journal.step()
    assert 0 < saved <= max(second.losses) < DRAFT["steps"]

    third = run_program(document, tmp_path, "third")
    assert third.cached["2-draft-data"]
    assert not third.cached["2-draft"]
    assert min(third.losses) == saved + 1
    assert all(second.losses[step] == third.losses[step] for step in second.losses.keys() & third.losses.keys())
    assert {**second.losses, **third.losses} == whole.losses
    assert third.report()["series"] == whole.report()["series"]
    manifests = [json.loads((ran.out / "manifest.json").read_text()) for ran in (whole, third)]
    assert manifests[0]["digest"] == manifests[1]["digest"] == third.digest == whole.digest
    assert not any(isinstance(ran.events[-1], RunFinished) for ran in (first, second))
    written, last = len(journal.most) - len(kept), max(second.losses)
    print(f"{settings['method']} on {settings['data']['kind']}: killed with {len(kept)} batches of the target's words,")
    print(f"  which stayed while {written} or more came to them; killed behind the loss of step {last} of")
    print(f"  {DRAFT['steps']}, gone on from step {saved}; digest {third.digest[:16]} both times")
