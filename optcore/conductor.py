"""Who runs stages: finds one done by its key, or starts its process, and remembers what all of them left.

This side of a run imports no torch.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from optcore.child import RESULTS, run_stage
from optcore.errors import OptError, StageCrashed
from optcore.estimate.document import Estimate, StageCostSeen
from optcore.estimate.seen import note_seen
from optcore.events import AnyEvent, Notice, StageFinished, StageStarted
from optcore.report import Series, StageCost
from optcore.stage import AnyWork, FetchWork, Inputs, StageRecord, StageTask
from optcore.work import JOURNAL, WorkFolder

Emit = Callable[[AnyEvent], None]


class Folder(NamedTuple):
    """A checkpoint, and the digest of what it holds."""

    path: str = ""
    digest: str = ""


@dataclass
class Conductor:
    """Where a run is: the inputs of the next stage, and what the stages so far left."""

    work: WorkFolder
    emit: Emit
    inputs: Inputs = field(default_factory=Inputs)
    records: dict[str, StageRecord] = field(default_factory=dict)
    costs: list[StageCost] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)
    """Curves that stages left, to plot."""
    foreseen: Estimate | None = None
    """What the stages behind the fetch will take, once that is known."""
    label: str = ""
    """What events say before the name of a stage: which of several walks of one run it belongs to."""
    met: dict[str, StageRecord] = field(default_factory=dict)
    """What the walks of one run found or left, by key: a fetch that is not pinned holds for all of them."""
    lost_seconds: float = 0.0
    """What stages took that came to nothing."""

    @property
    def checkpoint(self) -> Folder:
        """What the next stage reads."""
        return Folder(self.inputs.checkpoint, self.inputs.checkpoint_digest)

    def enter(self, folder: Folder) -> None:
        """Let the next stage read a checkpoint."""
        self.move(checkpoint=folder.path, checkpoint_digest=folder.digest)

    def left_by(self, stage: str) -> Folder:
        """The files of a finished stage; its key stands for what is in them."""
        key = self.records[stage].key
        return Folder(str(self.work.files(key)), key)

    def move(self, **changed: object) -> None:
        """Change what the next stage is given."""
        self.inputs = self.inputs.model_copy(update=changed)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Inputs may change inside; afterwards they are what they were."""
        before = self.inputs
        try:
            yield
        finally:
            self.inputs = before

    @contextmanager
    def unheard(self) -> Iterator[None]:
        """What stages say and plot inside is about a model that nobody gets: the report leaves it out."""
        notices, series = len(self.notices), len(self.series)
        try:
            yield
        finally:
            del self.notices[notices:], self.series[series:]

    def notice(self, stage: str, message: str) -> None:
        """Say something that a person should know, now and in the report."""
        self.notices.append(message)
        self.emit(Notice(stage=self.label + stage, message=message))

    def stage(self, name: str, work: AnyWork) -> StageRecord:
        """Find the stage done, or run it in its own process."""
        task = StageTask(name=self.label + name, work=work, inputs=self.inputs)
        key = task.key
        self.emit(StageStarted(stage=task.name, key=key))
        started = time.monotonic()
        with self.work.locked(key):
            record = self._finished(task, key)
            cached = record is not None
            record = record or self._persist(name, task, key)
        self.records[name] = self.met[key] = record
        self._account(name, record, cached, time.monotonic() - started)
        return record

    def _finished(self, task: StageTask, key: str) -> StageRecord | None:
        """A stage that need not run: a fetch only while its commits are pinned and its files still there, another one
        unless it asked to be done again."""
        if not isinstance(task.work, FetchWork):
            record = self.work.record(key)
            return record if record and record.reusable else None
        record = self.work.record(key) if task.work.is_pinned else self.met.get(key)
        return record if record and all(map(Path.exists, _fetched(record))) else None

    def _persist(self, name: str, task: StageTask, key: str) -> StageRecord:
        """A stage that died without a word is run once more where others wait for their turn: when it dies again, it is
        taken to be what the machine cannot do, and they go on."""
        try:
            return self._run(task, key)
        except StageCrashed as error:
            if not self.label:
                raise
            self.notice(name, f"{error}; it is run once more")
            return self._run(task, key)

    def _run(self, task: StageTask, key: str) -> StageRecord:
        part = self.work.begin(key)
        goes_on = any((part / JOURNAL).iterdir())  # a process that was killed had done some of it
        paths = {name: str(part / name) for name in ("scratch", "journal")}
        paths |= {"out": str(part / "files"), "cache": str(self.work.sources)}
        started = time.monotonic()
        try:
            usage = run_stage(task.model_copy(update=paths), part / "task.json", self.emit)
        except OptError:
            self.lost_seconds += time.monotonic() - started
            raise
        record = StageRecord(
            name=task.name,
            key=key,
            seconds=time.monotonic() - started,
            peak_memory_bytes=usage.peak_memory_bytes,
            peak_gpu_memory_bytes=usage.peak_gpu_memory_bytes,
            results=json.loads((part / RESULTS).read_text()),
        )
        self.work.commit(part, record)
        if not goes_on:
            self._learn(record)
        return record

    def _learn(self, record: StageRecord) -> None:
        """Let later estimates know what it took."""
        told = self.foreseen and self.foreseen.of(record.name.removeprefix(self.label))
        if self.foreseen and told and record.seconds > 0 and record.peak_memory_bytes > 0:
            seen = StageCostSeen(
                machine=self.foreseen.machine.kind,
                kind=told.kind,
                raw_seconds=told.raw_seconds,
                seconds=record.seconds,
                raw_memory_bytes=told.raw_memory_bytes,
                memory_bytes=record.peak_memory_bytes,
            )
            note_seen(self.work.root, seen)

    def _account(self, name: str, record: StageRecord, cached: bool, waited_seconds: float) -> None:
        self.notices += record.results.get("notices", [])
        self.series += [Series.model_validate(curve) for curve in record.results.get("series", [])]
        peaks = record.model_dump(include={"peak_memory_bytes", "peak_gpu_memory_bytes"})
        self.costs.append(StageCost(name=name, seconds=record.seconds, cached=cached, **peaks))
        self.emit(
            StageFinished(
                stage=self.label + name,
                key=record.key,
                cached=cached,
                seconds=waited_seconds,
                **peaks,
            )
        )


def _fetched(record: StageRecord) -> Iterator[Path]:
    """All folders and files that a fetch brought here."""
    results = record.results
    texts = (results["data_files"], *(text["files"] for text in results["texts"].values()))
    models = (model["path"] for kind in ("models", "drafts") for model in results[kind].values())
    for path in (results["source"], *models, *chain(*texts)):
        yield Path(path)
