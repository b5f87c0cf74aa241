"""Memory of a stage while it works: sampled beside the work, summed over its processes, and the peak on a GPU.

There is no GPU here: torch's own answers about one are given by hand where it would ask the driver, and all that is
done with them is real.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import pytest
import torch
from fixtures.exporting import CALIBRATION, plain
from fixtures.tiny_models import MakeModel

from optcore import memory_use
from optcore.__main__ import stage
from optcore.events import GPU_MEMORY, MEMORY, AnyEvent, Metric, parse_event
from optcore.gang import Gang
from optcore.memory_use import gpu_peak, leave_gpu_peak, memory_told, pause_seconds
from optcore.stage import Inputs, StageTask, TechniqueWork

SAID = """
import os, time
from optcore.memory_use import _held
from optcore.gang import STORE, members
held = bytearray(os.urandom(1)) * 60_000_000
while len(members(os.environ[STORE])) < 2: time.sleep(0.01)
if os.environ["RANK"] == "0":
    while (found := _held()["memory_bytes"]) < 130_000_000: time.sleep(0.05)
    print(found, flush=True)
else:
    time.sleep(60)
"""


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch would say it of two of them."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "memory_reserved", (3 * 10**9, 10**9).__getitem__)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", (4 * 10**9, 5 * 10**9).__getitem__)


def test_what_is_held_is_said_while_the_work_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_use, "PERIOD_seconds", 0.01)
    events: list[AnyEvent] = []
    with memory_told("1-ptq", events.append):
        time.sleep(0.1)
        held = b"x" * 60_000_000
        time.sleep(0.1)
    said = [event for event in events if isinstance(event, Metric)]
    assert len(said) >= 2
    assert {(event.stage, event.name, event.step) for event in said} == {("1-ptq", MEMORY, 0)}
    assert said[-1].value - said[0].value == pytest.approx(len(held), rel=0.2)
    time.sleep(0.05)
    assert len(events) == len(said), "nothing is said behind the work"


def test_a_failure_goes_its_way() -> None:
    with pytest.raises(ValueError, match="the work's"), memory_told("s", lambda _: None):
        raise ValueError("the work's")


def test_a_long_stage_has_few_points() -> None:
    """The definition, walked through ten hours: the first minute in pairs of seconds, and a bounded number in all."""
    at, times = 0.0, list[float]()
    while at < 36_000:
        at += pause_seconds(at)
        times.append(at)
    assert times[:3] == [2, 4, 6]
    assert 300 < len(times) < 450


def test_processes_of_one_stage_are_summed() -> None:
    """Each holds 60 MB of its own."""
    with Gang([sys.executable, "-c", SAID], 2, {"PYTHONPATH": ":".join(sys.path)}) as gang:
        said = int(gang.output.readline())
        for process in gang._processes:
            process.kill()
    assert 130e6 < said < 1e9


def test_without_a_gpu_there_is_no_peak_on_one(tmp_path: Path) -> None:
    leave_gpu_peak(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert gpu_peak(tmp_path) is None


@pytest.mark.usefixtures("two_gpus")
def test_the_peak_is_that_of_the_fullest_gpu_of_any_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, most in (("0", 10**9), ("1", 9 * 10**9)):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", (5 * 10**8, most).__getitem__)
        leave_gpu_peak(tmp_path / "scratch")
    assert gpu_peak(tmp_path / "scratch") == 9 * 10**9


@pytest.mark.usefixtures("two_gpus")
def test_a_stage_says_what_it_holds_and_leaves_its_peak(
    tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory_use, "PERIOD_seconds", 0.01)
    model = str(tiny_model("Llama"))
    task = StageTask(
        name="1-ptq",
        work=TechniqueWork(technique=plain("int8")),
        inputs=Inputs(source=model, checkpoint=model, calibration=CALIBRATION),
        **{name: str(tmp_path / name) for name in ("out", "scratch", "journal")},
    )
    (tmp_path / "out").mkdir()
    (tmp_path / "task.json").write_text(task.model_dump_json())
    with pytest.raises(SystemExit) as left:
        stage(argparse.Namespace(task=tmp_path / "task.json"))
    assert left.value.code == 0
    said = [parse_event(line) for line in capsys.readouterr().out.splitlines()]
    samples = [event for event in said if isinstance(event, Metric) and event.is_sample]
    assert {event.name for event in samples} == {MEMORY, GPU_MEMORY}
    assert {event.value for event in samples if event.name == GPU_MEMORY} == {3e9}
    assert gpu_peak(tmp_path / "scratch") == 5 * 10**9
    assert json.loads((tmp_path / "results.json").read_text())["bytes_read"] > 0
