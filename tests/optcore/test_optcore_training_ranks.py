"""Several processes train what one process trains: the same curve, the same checkpoints, one failure where one dies."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fixtures.tiny_models import MakeModel
from fixtures.training_stages import MakeStage, Trained
from pydantic import ValidationError
from safetensors.torch import load_file

from optcore.child import ReportedFailure, run_stage
from optcore.errors import RecipeError, StageCrashed
from optcore.events import AnyEvent, Metric, Progress
from optcore.gang import LOST_PEER, Gang
from optcore.gpus import visible_gpus
from optcore.stage import Inputs, StageTask, TechniqueWork
from optcore.streaming.quantized import QuantizedCheckpoint
from optcore.techniques import Distill, Finetune, Heal, Qad
from optcore.techniques.training import Training
from optcore.training.ranks import Ranks
from optcore.training.windows import FLAGS

torch.set_num_threads(1)
SMALL = Qad.model_validate(
    {
        "steps": 4,
        "batch": 4,
        "micro_batch": 1,
        "sequence_length": 32,
        "learning_rate": 1e-4,
        "validation": {"samples": 3, "every": 2},
        "skip_below": 0,
    }
)
CLOSE = 1e-4


def _changed(**changes: object) -> Qad:
    return Qad.model_validate({**SMALL.model_dump(), **changes})


def _compare(what: str, alone: Trained, together: Trained) -> None:
    """Print both curves and what became of them; hold the curves, all validations and the codes together."""
    worst = max(abs(a - b) for a, b in zip(alone.losses, together.losses, strict=True))
    measured = [
        abs(a - b)
        for one, other in zip(alone.results["series"], together.results["series"], strict=True)
        for (_, a), (_, b) in zip(one["points"], other["points"], strict=True)
    ]
    print(f"\n{what}: 1 process  {' '.join(f'{loss:.8f}' for loss in alone.losses)}")
    print(f"{what}: together   {' '.join(f'{loss:.8f}' for loss in together.losses)}")
    print(f"{what}: largest difference {worst:.1e} of a loss, {max(measured):.1e} of anything measured")
    differ, codes = _other_codes(alone.files, together.files)
    print(f"{what}: {differ} of {codes} codes differ")
    best = [one.results["training"]["best_step"] for one in (alone, together)]
    print(f"{what}: best steps {best}")
    assert len(alone.losses) == SMALL.steps
    assert best[0] == best[1] > 0
    assert max(worst, *measured) < CLOSE
    assert differ <= CLOSE * codes


def _other_codes(alone: Path, together: Path) -> tuple[int, int]:
    """How many codes differ, of how many."""
    one, other = QuantizedCheckpoint(alone), QuantizedCheckpoint(together)
    pairs = [(one.codes(name)[0], other.codes(name)[0]) for name in one.description.linears]
    return sum(int((a != b).sum()) for a, b in pairs), sum(a.numel() for a, _ in pairs)


def _interrupted(step: int, action: Callable[[], None]) -> Callable[[AnyEvent], None]:
    """Something that happens when a step is done."""

    def emit(event: AnyEvent) -> None:
        if isinstance(event, Progress) and event.phase == "training" and event.done == step:
            action()

    return emit


def _ranks() -> dict[int, int]:
    """Process of each rank that we started."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (folder / "environ").read_text() if parent == os.getpid() else ""
        except OSError:  # it ended while we looked
            continue
        if place := re.search(r"(?:^|\0)RANK=(\d+)", environment):
            found[int(place[1])] = int(folder.name)
    return found


@pytest.mark.parametrize(
    ("family", "changes"),
    [("Qwen2", {"scope": "full", "norms": True}), ("Llama", {"scope": "scales", "learning_rate": 5e-3})],
    ids=["full-tied", "scales"],
)
def test_two_processes_train_as_one(
    family: str, changes: dict[str, object], tiny_model: MakeModel, training_stage: MakeStage
) -> None:
    """Three windows to validate on are more than one process's share, and less than two shares."""
    stage = training_stage(tiny_model(family), _changed(**changes), "int4_g32")
    events: list[AnyEvent] = []
    alone, together = stage.run("alone"), stage.run("together", events.append, processes=2)
    _compare(family, alone, together)
    steps = [event.step for event in events if isinstance(event, Metric) and event.name == "loss"]
    assert steps == list(range(1, SMALL.steps + 1))  # one process speaks


def test_two_processes_write_the_best_dense_model_as_one_does(tiny_model: MakeModel, training_stage: MakeStage) -> None:
    """The last validation leaves embeddings and head gathered. Of the second process's share nothing counts."""
    settings = {"steps": 4, "learning_rate": 0.03, "schedule": "constant", "warmup": 0}
    shared = {"batch": 4, "sequence_length": 32, "validation": {"samples": 2, "every": 1}}
    stage = training_stage(tiny_model("Llama"), Finetune.model_validate({**settings, **shared}), "")
    with (stage.windows / FLAGS).open("r+b") as flags:
        flags.seek(-32, os.SEEK_END)
        flags.write(bytes(32))
    alone, together = stage.run("alone"), stage.run("together", processes=2)
    noted = [one.results["training"] for one in (alone, together)]
    assert noted[0]["best_step"] == noted[1]["best_step"]
    assert 0 < noted[0]["best_step"] < 4
    assert noted[0]["best"] == pytest.approx(noted[1]["best"], abs=CLOSE)
    one, other, before = (
        load_file(folder / "model.safetensors") for folder in (alone.files, together.files, stage.model)
    )
    moved = {name: float((one[name] - before[name]).float().norm()) for name in before}
    apart = {name: float((one[name] - other[name]).float().norm()) / moved[name] for name in before}
    print(f"largest difference of a tensor, as a share of how far it moved: {max(apart.values()):.1e}")
    assert one.keys() == other.keys() == before.keys()
    assert {name: share for name, share in apart.items() if share > 1e-2} == {}  # files hold bfloat16


def test_a_killed_rank_ends_the_other_and_one_process_goes_on(tiny_model: MakeModel, training_stage: MakeStage) -> None:
    stage = training_stage(tiny_model("Llama"), SMALL, "int4_g32")
    found: dict[int, int] = {}

    def kill() -> None:
        found.update(_ranks())
        os.kill(found[1], signal.SIGKILL)

    with pytest.raises(StageCrashed, match="SIGKILL"):
        stage.run("killed", _interrupted(3, kill), processes=2)
    assert sorted(found) == [0, 1]
    assert not any(_is_running(pid) for pid in found.values())
    checkpoints = sorted(path.name for path in (stage.folder / "killed" / "journal").glob("step-*"))
    alone, resumed = stage.run("alone"), stage.run("killed")
    _compare(f"killed with 2 processes, resumed with 1 from {checkpoints}", alone, resumed)
    assert checkpoints == ["step-00000002"]


def test_two_processes_go_on_where_one_was_stopped(tiny_model: MakeModel, training_stage: MakeStage) -> None:
    """Of a model with experts, most of which no token of a process reaches in a step."""
    technique = _changed(batch=2, sequence_length=2, micro_batch=None)
    stage = training_stage(tiny_model("Qwen3Moe"), technique, "int4_g32")

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        stage.run("stopped", _interrupted(2, stop))
    assert list((stage.folder / "stopped" / "journal").glob("step-00000002"))
    _compare("stopped with 1 process, resumed with 2", stage.run("alone"), stage.run("stopped", processes=2))


def test_a_step_that_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match=r"processes \(2\) must divide batch \(3\)"):
        _changed(batch=3, micro_batch=None, processes=2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="2 processes cannot share 3 windows"):
        Ranks(3)


_FAILING = """
import os, sys, time
from optcore.__main__ import emit
from optcore.errors import DataError, OptError
from optcore.events import RunFailed
rank = os.environ["RANK"]
if rank == sys.argv[1]:
    emit(RunFailed(failure=DataError(f"rank {rank}").failure("s")))
    emit(RunFailed(failure=OptError("a later one").failure("s")))
    sys.exit(1)
time.sleep(60)
"""


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_typed_failure_of_any_rank_is_reported_once(
    rank: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And ends the others, which would wait for it."""
    monkeypatch.setattr(
        "optcore.child.Gang", lambda _, count, env: Gang([sys.executable, "-c", _FAILING, rank], 2, env)
    )
    task, started = StageTask(name="s", work=TechniqueWork(technique=SMALL), inputs=Inputs()), time.monotonic()
    with pytest.raises(ReportedFailure, match=f"rank {rank}") as caught:
        run_stage(task, tmp_path / "task.json", lambda _: None)
    assert caught.value.failure().code == "data_unusable"
    assert time.monotonic() - started < 30


def test_who_lost_another_is_not_to_blame() -> None:
    """A process that dies without a word is the cause, whoever is noticed first."""
    code = "import os, sys, time\nif os.environ['RANK'] == '0': sys.exit(76)\ntime.sleep(.3); os.kill(os.getpid(), 9)"
    late = code.replace("sys.exit(76)", "time.sleep(.6); sys.exit(76)")
    statuses = []
    for one in (late, late.replace("os.kill(os.getpid(), 9)", "sys.exit(3)"), code):
        with Gang([sys.executable, "-c", one], 2, {}) as gang:
            assert gang.output.read() == b""
        statuses.append(gang.status)
    assert statuses == [-signal.SIGKILL, 3, LOST_PEER]


def test_as_many_processes_as_gpus_that_divide_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert visible_gpus(tmp_path) == 3
    for chosen, count in (("", 0), ("0,2", 2), ("1,-1,2", 1), ("MIG-a/1", 1)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
        assert visible_gpus(tmp_path) == count
        assert visible_gpus(tmp_path / "no-driver") == 0
    monkeypatch.setattr("optcore.techniques.training.visible_gpus", lambda: 3)
    assert [_changed(batch=batch, micro_batch=None).process_count for batch in (4, 6, 5)] == [2, 3, 1]
    assert _changed(batch=4, processes=4).process_count == 4


ADALORA = {"scope": "lora", "lora": {"variant": "adalora"}}


@pytest.mark.parametrize(
    ("technique", "changes", "setting"),
    [
        (Distill, {"on_policy": 0.5}, "on_policy"),
        (Distill, ADALORA, "variant: adalora"),
        (Heal, {"lora": {"variant": "adalora"}}, "variant: adalora"),
        (Qad, ADALORA, "variant: adalora"),
        (Qad, {"scope": "block"}, "scope: block"),
    ],
)
def test_what_only_one_process_can_do_is_done_by_one(
    technique: type[Training], changes: dict[str, object], setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On any machine, and an explicit wish for more is refused with the recipe."""
    monkeypatch.setattr("optcore.techniques.training.visible_gpus", lambda: 8)
    assert technique.model_validate({}).process_count == 8
    for processes in (1, "auto"):
        assert technique.model_validate({**changes, "processes": processes}).process_count == 1
    with pytest.raises(ValidationError, match=f"`{setting}` trains in one process: leave `processes` out"):
        technique.model_validate({**changes, "processes": 2})


def test_adapters_that_are_not_trained_ask_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optcore.techniques.training.visible_gpus", lambda: 4)
    assert Heal.model_validate({"adapters": False, "lora": {"variant": "adalora"}}).process_count == 4


def test_every_process_takes_as_many_parts() -> None:
    ranks = Ranks()
    ranks.count = 3
    for items, size in ((1, 1), (3, 2), (7, 2), (9, 2), (10, 4)):
        shares = []
        for ranks.rank in range(3):
            own = ranks.share(range(items))
            shares.append(ranks.in_step([own[i : i + size] for i in range(0, len(own), size)], items, size))
        assert len({len(parts) for parts in shares}) == 1
        assert sorted(item for parts in shares for part in parts for item in part) == list(range(items))


def test_the_death_of_a_conductor_ends_all_ranks(tmp_path: Path) -> None:
    """As `kill -9` of the engine does, whose processes nobody else would end."""
    code = (
        "import sys; from optcore.gang import Gang\n"
        "with Gang([sys.executable, '-c', 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'], 2, {}) "
        "as gang:\n    for line in gang.output: print(int(line), flush=True)\n"
    )

    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as conductor:
        assert conductor.stdout
        pids = [int(conductor.stdout.readline()) for _ in range(2)]
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
        conductor.kill()
    deadline = time.monotonic() + 10
    while any(_is_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_is_running(pid) for pid in pids)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_more_processes_than_the_machine_has_room_for_are_refused(tmp_path: Path) -> None:
    technique = _changed(batch=1024, micro_batch=1, processes=1024)
    task = StageTask(name="1-qad", work=TechniqueWork(technique=technique), inputs=Inputs())
    with pytest.raises(RecipeError, match="1024 processes are asked for, and this machine has room for"):
        run_stage(task, tmp_path / "task.json", lambda _: None)
