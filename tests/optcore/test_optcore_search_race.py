"""Whole races on the model that ships with Lathe, their stages in the test's own process."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures.whole_runs import stages_in_this_process, walk

from optcore import conductor, foresight
from optcore.child import Usage
from optcore.conductor import Emit
from optcore.engine import _race, fetch, optimize
from optcore.errors import GateFailed, OutOfDisk, OutOfMemory, RecipeError, StageCrashed
from optcore.estimate.document import Machine
from optcore.estimate.facts import from_folder
from optcore.estimate.seen import read_seen
from optcore.estimate.weight import weigh
from optcore.events import (
    AnyEvent,
    Notice,
    RecipeResolved,
    RunEstimated,
    RunFinished,
    RunPlanned,
    StageFinished,
    StageStarted,
)
from optcore.manifest import read_manifest
from optcore.recipe import load_recipe, recipe_from
from optcore.report import Candidate, Report
from optcore.search.race import Race
from optcore.stage import StageTask
from optcore.verify import verify
from optcore.work import WorkFolder

pytestmark = pytest.mark.timeout(600)

QUICK = {"technique": "ptq", "rounding": "nearest", "smoothing": "none", "scale_search": "max"}
GOAL = {
    "max_kl": 0.5,
    "candidates": [
        [{**QUICK, "scheme": "int8"}],
        [{**QUICK, "scheme": "int4_g32"}],
        [{**QUICK, "scheme": "int2_g16"}],
        [{**QUICK, "scheme": "int4_g32", "activation_search": True, "kv_cache": "fp8"}],
        [{**QUICK, "scheme": "int4_g64", "ignore": ["no.such.layer"]}],
    ],
}


def document(model: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model": {"path": str(model)},
        "calibration": {"dataset": "python-stdlib", "samples": 2, "sequence_length": 32},
        "chain": [{"technique": "prune", "depth": 1, "compare": False}],
        "evaluate": [{"evaluator": "fidelity", "samples": 8, "sequence_length": 64}],
        **changes,
    }


def write(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


class Raced:
    """A finished race."""

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        self.folder, self.out, self.work = folder, folder / "out", folder / "work"
        self.events = walk(write(folder, content), self.out, self.work)
        assert isinstance(self.events[-1], RunFinished), self.events[-1]
        self.report = Report.model_validate_json((self.out / "report.json").read_text())
        assert self.report.front
        self.front = self.report.front

    def named(self, name: str) -> Candidate:
        return next(one for one in self.front.candidates if one.name == name)


@pytest.fixture(scope="module")
def raced(tmp_path_factory: pytest.TempPathFactory, stdlib_model: Path) -> Raced:
    return Raced(tmp_path_factory.mktemp("race"), document(stdlib_model, objective=GOAL))


def test_a_goal_ends_in_a_front_and_its_winner(raced: Raced) -> None:
    standing = {one.name: one.status for one in raced.front.candidates}
    assert standing["c03"] == "stopped"
    assert standing["c05"] == "failed"
    assert "no.such.layer" in raced.named("c05").why
    finished = [one for one in raced.front.candidates if one.status in ("winner", "front", "dominated")]
    good = [one for one in finished if one.kl is not None and one.kl <= GOAL["max_kl"]]  # type: ignore[operator]
    won = next(one for one in finished if one.status == "winner")
    assert won.weight_bytes == min(one.weight_bytes or 0 for one in good)
    assert [(goal.name, goal.met, goal.value) for goal in raced.front.goals] == [("max_kl", True, won.kl)]
    assert verify(raced.out) == ()
    assert raced.report.notices


def test_what_candidates_share_is_done_once(raced: Raced) -> None:
    ended = [event for event in raced.events if isinstance(event, StageFinished)]
    prunes = [event.cached for event in ended if event.stage.endswith("-1-prune")]
    fetches = [event.cached for event in ended if event.stage.endswith("-0-fetch")]
    assert prunes == fetches == [False, True, True, True, True]
    assert raced.front.stages_run == sum(not event.cached for event in ended)
    assert raced.front.stages_reused == sum(event.cached for event in ended)
    assert raced.front.seconds < raced.front.seconds_apart
    assert 0 < raced.front.seconds_apart_inferred < raced.front.seconds_apart


def test_the_last_plan_is_what_was_done(raced: Raced) -> None:
    plans = [event.stages for event in raced.events if isinstance(event, RunPlanned)]
    done = [event.stage for event in raced.events if isinstance(event, StageFinished)]
    assert len(set(plans[-1])) == len(plans[-1])
    assert set(done) <= set(plans[-1])
    assert "c03-2-ptq-screen" in plans[-1]
    assert "c03-3-export" not in plans[-1]
    assert any("c03-3-export" in plan for plan in plans)
    said = [event for event in raced.events if isinstance(event, Notice) and event.message.startswith("c03: stopped")]
    assert len(said) == 1
    assert said[0].stage == "c03-2-ptq-screen"


def test_what_to_expect_is_said_once_and_learned_from(raced: Raced) -> None:
    (told,) = (event for event in raced.events if isinstance(event, RunEstimated))
    names = [stage.stage for stage in told.stages]
    assert names[:4] == ["c01-1-prune", "c01-1-prune-measure", "c01-2-ptq", "c01-3-export"]
    assert "c02-2-ptq" in names
    assert "c02-1-prune" not in names, "what is shared is expected once"
    ran = [event.stage for event in raced.events if isinstance(event, StageFinished) and not event.cached]
    foreseen = [stage for stage in ran if not stage.endswith(("fetch", "screen"))]
    assert len(read_seen(raced.work)) == len(foreseen)
    expected = [stage.stage for stage in raced.report.expected]
    assert expected == ["1-prune", "1-prune-measure", "2-ptq", "3-export", "4-evaluate"]
    assert raced.report.expected_bytes


def test_a_candidate_that_the_machine_has_no_room_for_does_not_begin(
    stdlib_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = {"batch": 64, "micro_batch": 64, "sequence_length": 2048}
    training = {"technique": "qad", "steps": 1, "data": {"kind": "text"}, **size}
    goal = {"candidates": [[{**QUICK, "scheme": "int8"}, training], [{**QUICK, "scheme": "int8"}]]}
    asked = load_recipe(write(tmp_path, document(stdlib_model, objective=goal)))
    machine = Machine(host_memory_bytes=10**9, disk_free_bytes=10**12)
    monkeypatch.setattr(foresight, "this_machine", lambda _: machine)
    with stages_in_this_process():
        optimize(asked, tmp_path / "out", tmp_path / "work", lambda _: None)
    front = Report.model_validate_json((tmp_path / "out" / "report.json").read_text()).front
    assert front
    assert [one.status for one in front.candidates] == ["refused", "winner"]
    assert "refused before any work" in front.candidates[0].why
    small = machine.model_copy(update={"host_memory_bytes": 10**8})
    monkeypatch.setattr(foresight, "this_machine", lambda _: small)
    with stages_in_this_process(), pytest.raises(OutOfMemory, match="refused before any work"):
        optimize(asked, tmp_path / "none", tmp_path / "work", lambda _: None)


def test_as_many_candidates_begin_as_the_disk_has_room_for(
    stdlib_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schemes = ("int8", "int4_g32", "int4_g64")
    content = document(
        stdlib_model, chain=[], objective={"candidates": [[{**QUICK, "scheme": one}] for one in schemes]}
    )
    asked, told = load_recipe(write(tmp_path, content)), list[AnyEvent]()

    def foreseen(free: int) -> Race:
        machine = Machine(disk_free_bytes=free)
        monkeypatch.setattr(foresight, "this_machine", lambda _: machine)
        race = _race(asked, tmp_path / "work", told.append)
        with stages_in_this_process():
            race.fetch()
        foresight.foresee_race(race, WorkFolder(tmp_path / "work"), ())
        return race

    assert len(foreseen(10**8).waiting) == 3
    race = foreseen(4_500_000)
    assert [runner.name for runner in race.waiting] == ["c01"]
    assert [runner.error.field for runner in race.runners[1:] if runner.error] == [
        "/objective/candidates/1",
        "/objective/candidates/2",
    ]
    (*_, said) = (event for event in told if isinstance(event, RunEstimated))
    assert {stage.stage.partition("-")[0] for stage in said.stages} == {"c01"}
    assert "no room" in race.notices[0]
    with pytest.raises(OutOfDisk) as caught:
        foreseen(10**6)
    assert caught.value.field == "/objective/candidates/0/0"


def test_sizes_were_predicted(raced: Raced, stdlib_model: Path) -> None:
    facts = from_folder(stdlib_model)
    measured = [one for one in raced.front.candidates if one.status != "failed"]
    assert len(measured) == 4
    for one in measured:
        found = weigh(recipe_from({**one.recipe, "model": {"path": "m"}}), facts)
        assert found
        assert found.size == pytest.approx(one.weight_bytes, rel=0.001), one.chain


def test_a_candidates_recipe_alone_makes_the_same_checkpoint(raced: Raced, stdlib_model: Path, tmp_path: Path) -> None:
    won = next(one for one in raced.front.candidates if one.status == "winner")
    alone = {**won.recipe, "model": {"path": str(stdlib_model)}}
    events = walk(write(tmp_path, alone), tmp_path / "out", raced.work)
    ran = [event.stage for event in events if isinstance(event, StageFinished) and not event.cached]
    assert ran == ["0-fetch"], "whose folder is no commit"
    assert read_manifest(tmp_path / "out").digest == read_manifest(raced.out).digest


def test_a_killed_race_goes_on(raced: Raced, stdlib_model: Path, tmp_path: Path) -> None:
    path = write(tmp_path, document(stdlib_model, objective=GOAL))
    done: list[str] = []

    def until_the_second_screen(event: AnyEvent) -> None:
        if isinstance(event, StageStarted) and event.stage == "c02-2-ptq-screen":
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        with stages_in_this_process():
            optimize(load_recipe(path), tmp_path / "out", tmp_path / "work", until_the_second_screen)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    events = walk(path, tmp_path / "out", tmp_path / "work")
    done += [event.stage for event in events if isinstance(event, StageFinished) and not event.cached]
    assert {"c01-1-prune", "c01-2-ptq", "c01-2-ptq-screen", "c02-2-ptq"}.isdisjoint(done)
    assert "c02-2-ptq-screen" in done
    assert read_manifest(tmp_path / "out").digest == read_manifest(raced.out).digest
    front = Report.model_validate_json((tmp_path / "out" / "report.json").read_text()).front
    assert front
    standing = [(one.name, one.status, one.stages_run, one.stages_reused) for one in front.candidates]
    assert standing == [(one.name, one.status, one.stages_run, one.stages_reused) for one in raced.front.candidates]


@pytest.mark.parametrize("asked", [{"on_miss": "fail"}, {}], ids=["asked for", "because it publishes"])
def test_a_missed_goal_fails_with_how_near_it_came(
    raced: Raced, stdlib_model: Path, tmp_path: Path, asked: dict[str, str]
) -> None:
    goal = {**GOAL, "max_kl": 1e-6, **asked}
    publish = None if asked else {"repo_id": "me/x"}
    path = write(tmp_path, document(stdlib_model, objective=goal, publish=publish))
    with stages_in_this_process(), pytest.raises(GateFailed, match=r"the nearest, c01 .* at most 1e-06") as caught:
        optimize(load_recipe(path), tmp_path / "out", raced.work, _unheard)
    assert caught.value.kind == "quality_gate"
    assert caught.value.field == "/objective"


def test_the_nearest_result_is_one_with_a_notice(raced: Raced, stdlib_model: Path, tmp_path: Path) -> None:
    path = write(tmp_path, document(stdlib_model, objective={**GOAL, "max_kl": 1e-6}))
    events = walk(path, tmp_path / "out", raced.work)
    assert isinstance(events[-1], RunFinished)
    report = Report.model_validate_json((tmp_path / "out" / "report.json").read_text())
    assert report.front
    assert [goal.met for goal in report.front.goals] == [False]
    assert any("no candidate meets the goal" in notice for notice in report.notices)
    assert [one.status for one in report.front.candidates].count("winner") == 1


def test_an_impossible_size_is_refused_before_work(stdlib_model: Path, tmp_path: Path) -> None:
    asked = {"max_bytes": 1_000_000, "candidates": GOAL["candidates"][:2]}  # type: ignore[index]
    seen: list[AnyEvent] = []
    path = write(tmp_path, document(stdlib_model, objective=asked))
    with stages_in_this_process(), pytest.raises(RecipeError, match="no candidate can meet the goal") as caught:
        optimize(load_recipe(path), tmp_path / "out", tmp_path / "work", seen.append)
    assert "at most 1 MB" in caught.value.message
    assert {event.stage[4:] for event in seen if isinstance(event, StageStarted)} == {"0-fetch"}


def test_a_budget_ends_with_what_is_there(raced: Raced, stdlib_model: Path, tmp_path: Path) -> None:
    goal = {**GOAL, "budget": {"seconds": 1, "candidates": 4}}
    other = document(stdlib_model, objective=goal, seed=7)  # nothing of it is found done, but for the budget's clock
    events = walk(write(tmp_path, other), tmp_path / "out", tmp_path / "work")
    assert isinstance(events[-1], RunFinished)
    front = Report.model_validate_json((tmp_path / "out" / "report.json").read_text()).front
    assert front
    whys = {one.status: one.why for one in front.candidates}
    assert set(whys) == {"winner", "stopped"}
    assert any("no room for it" in one.why or "no room to finish" in one.why for one in front.candidates)
    assert "4 candidates" in front.candidates[4].why


class Crashing:
    """A race of two on the other's work folder, in which the kernel kills screens and says so to nobody."""

    def __init__(self, raced: Raced, folder: Path, model: Path, crashes: dict[str, int]) -> None:
        self.crashes, self.events = crashes, list[AnyEvent]()
        self.out, self.work = folder / "out", folder / "work"
        shutil.copytree(raced.work, self.work)
        for record in (self.work / "stages").glob("*/record.json"):
            if json.loads(record.read_text())["name"].endswith("-screen"):
                shutil.rmtree(record.parent)
        goal = {**GOAL, "candidates": GOAL["candidates"][:2]}  # type: ignore[index]
        asked = load_recipe(write(folder, document(model, objective=goal)))
        with stages_in_this_process(), pytest.MonkeyPatch.context() as patch:
            self.here = conductor.run_stage
            patch.setattr(conductor, "run_stage", self.run)
            optimize(asked, self.out, self.work, self.events.append)

    def run(self, task: StageTask, file: Path, emit: Emit) -> Usage:
        name = task.name[:3]
        if task.name.endswith("-screen") and self.crashes.get(name):
            self.crashes[name] -= 1
            time.sleep(0.1)
            raise StageCrashed(f"stage {task.name} was killed (SIGKILL)")
        return self.here(task, file, emit)


@pytest.mark.parametrize("crashes", [1, 2])
def test_a_stage_that_crashes_twice_puts_its_candidate_out(
    raced: Raced, stdlib_model: Path, tmp_path: Path, crashes: int
) -> None:
    again = Crashing(raced, tmp_path, stdlib_model, {"c02": crashes})
    front = Report.model_validate_json((again.out / "report.json").read_text()).front
    assert front
    first, second = front.candidates
    assert (second.status == "failed") == (crashes == 2)
    assert ("SIGKILL" in second.why) == (crashes == 2)
    said = [event for event in again.events if isinstance(event, Notice) and "run once more" in event.message]
    assert [event.stage for event in said] == ["c02-2-ptq-screen"]
    keys = {event.key for event in again.events if isinstance(event, StageFinished)}
    done = sum(record.seconds for key in keys if (record := WorkFolder(again.work).record(key)))
    assert front.seconds == pytest.approx(first.seconds + second.seconds)
    assert front.seconds - done >= 0.1 * crashes, "of the budget, too, what failed has its share"


def test_a_machine_on_which_all_candidates_crash_ends_the_attempt(
    raced: Raced, stdlib_model: Path, tmp_path: Path
) -> None:
    crashes = {"c01": 9, "c02": 9}
    with pytest.raises(StageCrashed, match="c01-2-ptq-screen") as caught:
        Crashing(raced, tmp_path, stdlib_model, crashes)
    assert caught.value.failure().retryable
    assert crashes == {"c01": 7, "c02": 7}


def test_a_fetch_pins_what_every_candidate_names(stdlib_model: Path, tmp_path: Path) -> None:
    seen: list[AnyEvent] = []
    content = document(stdlib_model, sweep={"/seed": [0, 1], "/chain/0/depth": [1, 2]}, target={"format": "dense"})
    asked = recipe_from(content)
    with stages_in_this_process():
        resolved = fetch(asked, tmp_path / "work", seen.append)
    assert resolved == asked, "a folder has no commit"
    said = [event.recipe for event in seen if isinstance(event, RecipeResolved)]
    assert [recipe_from(each) for each in said] == [asked]


def _unheard(_: AnyEvent) -> None:
    pass
