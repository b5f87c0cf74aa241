"""The context of one stage: where it reads, where it writes, how it speaks."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from tempfile import mkdtemp

from optcore.draft_made import Made
from optcore.events import AnyEvent, Metric, Notice, Phase, Progress
from optcore.references import Calibration
from optcore.report import Task


@dataclass
class Run:
    """The one mutable object of the engine: made for a stage, dropped with its process."""

    stage: str
    checkpoint: Path
    """The folder that this stage reads."""
    source: Path
    """The model that the chain started from."""
    out: Path
    """The folder that this stage writes; it becomes visible only when the stage ends well."""
    scratch: Path
    """A folder for what does not fit into memory; emptied whenever the stage starts, removed afterwards."""
    calibration: Calibration
    data_files: tuple[Path, ...]
    """The data set's files, already on this machine."""
    emit: Callable[[AnyEvent], None]
    journal: Path | None = None
    """A folder for what a later process must know to go on with this stage; removed when it has ended well. None: a
    stage that is killed begins anew."""
    seed: int = 0
    export: Path | None = None
    """The exported checkpoint, for stages after the export."""
    target: str = "compressed-tensors"
    """Its format."""
    draft: Path | None = None
    """The draft that guesses for the model, for stages that measure it."""
    made: Made | None = None
    """How that did before, as a rule on the model that it was made for, where this may be another one."""
    task: Task = "text-generation"
    """What the model is for."""
    text_files: tuple[Path, ...] = ()
    """Files of the training text, where it is not the recipe's own data set."""
    teacher: Path | None = None
    """The model that a student learns from."""
    windows: Path = Path()
    """Prepared training windows."""
    answers: Path | None = None
    """What the teacher said of them, where it was asked once for all."""
    features: Path | None = None
    """What the target computed of them, where that was kept for a draft to read."""
    models: tuple[Path, ...] = ()
    """Further models that the technique names, in its order."""
    results: dict[str, object] = field(default_factory=dict)
    """What the stage leaves in its record besides files."""

    @property
    def place(self) -> str:
        """Where the chain's entry of this stage stands in the recipe, a JSON Pointer."""
        number = next(
            part for part in self.stage.split("-") if part.isdigit()
        )  # behind a candidate's name, such as c02
        return f"/chain/{int(number) - 1}"

    @property
    def records(self) -> Path:
        """The journal; where there is none, an empty folder that is gone with the scratch."""
        if self.journal is None:
            self.scratch.mkdir(parents=True, exist_ok=True)
            self.journal = Path(mkdtemp(dir=self.scratch))
        self.journal.mkdir(parents=True, exist_ok=True)
        return self.journal

    def progress(self, phase: Phase, done: int, total: int) -> None:
        """Say how far the stage is."""
        self.emit(Progress(stage=self.stage, phase=phase, done=done, total=total))

    def metric(self, name: str, value: float, step: int | None = None) -> None:
        """Say a measured number; one that is not finite has no place in a plot, nor in JSON."""
        if isfinite(value):
            self.emit(Metric(stage=self.stage, name=name, value=value, step=step))

    def do_again(self) -> None:
        """Let no later run take this stage's results for its own: they are what they are for how the machine was."""
        self.results["reusable"] = False

    def notice(self, message: str) -> None:
        """Say something that a person should know."""
        self.emit(Notice(stage=self.stage, message=message))
        self.results.setdefault("notices", []).append(message)  # type: ignore[attr-defined]
