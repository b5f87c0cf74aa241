"""What a teacher says once, for a training stage: a stage that is killed asks and writes nothing twice."""

from pathlib import Path

import pytest
from fixtures.training import Killed

from optcore.events import AnyEvent, Progress
from optcore.references import Calibration
from optcore.stage import AnyWork, DataWork, Inputs, StageRecord, StageTask, TeacherWork
from optcore.stages import perform
from optcore.techniques.data import TrainingData
from optcore.training.teacher_cache import TeacherCache
from optcore.training.windows import Windows
from optcore.work import WorkFolder

ANSWERS = TeacherWork(top_k=4, temperature=2)


def _data(kind: str, length: int, training: int) -> DataWork:
    data = TrainingData.model_validate({"kind": kind})
    return DataWork(data=data, sequence_length=length, training=training, validation=8)


def _stage(work: WorkFolder, model: Path, todo: AnyWork, windows: Path = Path(), kill_at: int = 0) -> list[int]:
    """Do a stage's work in the work folder, as the conductor does; how far it said that it was. Raises `Killed`."""
    said: list[int] = []

    def emit(event: AnyEvent) -> None:
        if isinstance(event, Progress):
            said.append(event.done)
            if event.done == kill_at:
                raise Killed

    inputs = Inputs(
        source=str(model),
        checkpoint=str(model),
        teacher=str(model),
        windows=str(windows),
        calibration=Calibration(dataset="python-stdlib", samples=2, sequence_length=64),
    )
    key = type(todo).__name__
    part = work.begin(key)
    folders = {"out": str(part / "files"), "scratch": str(part / "scratch"), "journal": str(part / "journal")}
    perform(StageTask(name="stage", work=todo, inputs=inputs, **folders), emit)
    work.commit(part, StageRecord(name="stage", key=key, seconds=0, peak_memory_bytes=0))
    return said


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_killed_teacher_is_not_asked_again_what_it_has_answered(stdlib_model: Path, tmp_path: Path) -> None:
    whole, killed = WorkFolder(tmp_path / "whole"), WorkFolder(tmp_path / "killed")
    _stage(whole, stdlib_model, _data("random", 256, 32))
    windows = whole.files("DataWork")
    assert _stage(whole, stdlib_model, ANSWERS, windows) == [16, 32, 40]
    with pytest.raises(Killed):
        _stage(killed, stdlib_model, ANSWERS, windows, kill_at=16)
    moved = (tmp_path / "killed").rename(tmp_path / "moved")
    again = WorkFolder(moved)
    model = tmp_path / "model"
    model.symlink_to(stdlib_model.absolute())
    assert _stage(again, model, ANSWERS, windows) == [32, 40]
    assert _files(again.files("TeacherWork")) == _files(whole.files("TeacherWork"))
    assert TeacherCache(again.files("TeacherWork")).windows == 40
    assert not list(moved.rglob("journal"))


def test_windows_that_a_killed_teacher_wrote_are_not_written_again(
    stdlib_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optcore.training import generate

    asked: list[int] = []
    continued = generate.continued

    def counted(*given: object) -> object:
        asked.append(1)
        return continued(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(generate, "continued", counted)
    work = _data("generated", 24, 72)
    whole, killed = WorkFolder(tmp_path / "whole"), WorkFolder(tmp_path / "killed")
    assert _stage(whole, stdlib_model, work) == [32, 64, 80]
    with pytest.raises(Killed):
        _stage(killed, stdlib_model, work, kill_at=64)
    asked.clear()
    assert _stage(killed, stdlib_model, work) == [32, 64, 80]
    assert len(asked) == 1
    assert _files(killed.files("DataWork")) == _files(whole.files("DataWork"))
    assert Windows(killed.files("DataWork")).facts.windows == 80
