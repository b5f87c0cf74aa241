"""A job as its page shows it, read in one go."""

import json
from dataclasses import dataclass

from pydantic import ValidationError

from api import wire
from api.auth import Caller
from api.dashboard.feed import Line, lines
from api.dashboard.pages import render
from api.errors import StoreAway
from api.files import ArtifactStore, name_of
from api.store import artifacts, events, jobs, stages
from api.store.session import Sessions
from lathe.models import Artifact, Job
from optcore.recipe import recipe_from
from optcore.report import Report

MAX_REPORT_bytes = 4_000_000
MAX_FILES = 200
FEED_EVENTS = 500
"""History that a page starts with; the API has all of it."""
UNSETTLED = ("pending", "uploading")


@dataclass(frozen=True)
class Curve:
    """Something to plot."""

    title: str
    x: str
    y: str
    points: str
    """JSON: the list of x, then the list of y."""


@dataclass(frozen=True)
class Snapshot:
    """One state of a job, and its history up to there."""

    job: Job
    seq: int
    """Number of the last event in it."""
    lines: list[Line]
    files: tuple[Artifact, ...]
    report: Report | None
    newly_pinned: bool
    """Whether the recipe's sources became known in these events."""

    @property
    def recipe(self) -> str:
        """The recipe as YAML; pinned once the worker knows how."""
        return (recipe_from(self.job.resolved) if self.job.resolved else self.job.recipe).to_yaml()

    @property
    def settled(self) -> bool:
        """Nothing will change any more."""
        return self.job.is_terminal and self.job.publish.status not in UNSETTLED

    @property
    def curves(self) -> list[Curve]:
        """What was measured along the way."""
        return _curves(self.report) if self.report else []

    def state(self) -> str:
        """The part of the page that changes, without the feed."""
        return render("job_state.html", job=self.job, files=self.files, report=self.report, curves=self.curves)

    def message(self) -> str:
        """What a stream sends: the state, and what is new beside it."""
        return self.state() + render("news.html", lines=self.lines, recipe=self.recipe if self.newly_pinned else None)


@dataclass(frozen=True)
class Watch:
    """One viewer's view of one job. Each look is a transaction of its own."""

    sessions: Sessions
    store: ArtifactStore
    viewer: Caller
    job_id: str

    def look(self, after: int | None = None) -> Snapshot:
        """The job now, with the events above `after`, or the latest ones. Raises `NotFound`."""
        with self.sessions() as session:
            row = jobs.get(session, self.viewer.project_id, self.job_id)
            job = wire.job(row, stages.of(session, [row.id]))
            seq = max(0, row.last_seq - FEED_EVENTS) if after is None else after
            found = [wire.event(each) for each in events.after(session, row.id, seq, FEED_EVENTS)]
            files = artifacts.page(session, row.id, limit=MAX_FILES)
        shown = tuple(wire.artifact(file) for file in files)
        report = self._report(row.epoch, shown)
        pinned = any(event.type == "recipe_resolved" for event in found)
        return Snapshot(job, found[-1].seq if found else seq, lines(found), shown, report, pinned)

    def _report(self, epoch: int, files: tuple[Artifact, ...]) -> Report | None:
        """The measured before and after, once it is there and when it can be read."""
        size = next((file.bytes for file in files if file.path == "report.json"), None)
        name = name_of(self.job_id, epoch, "report.json")
        try:
            if size is None or size > MAX_REPORT_bytes or self.store.size_bytes(name) != size:
                return None
            return Report.model_validate_json(b"".join(self.store.read(name, 0, size)))
        except (StoreAway, ValidationError):
            return None


def _curves(report: Report) -> list[Curve]:
    errors = [each.relative_error for each in report.layer_errors]
    found = [Curve("Error by layer", "layer", "relative error", _points(list(range(len(errors))), errors))]
    for series in report.series:
        xs, ys = [x for x, _ in series.points], [y for _, y in series.points]
        found.append(Curve(series.title, "step", series.unit or series.name, _points(xs, ys)))
    return [curve for curve in found if curve.points.count(",") > 2]


def _points(xs: list[float] | list[int], ys: list[float]) -> str:
    return json.dumps([xs, ys], allow_nan=False)
