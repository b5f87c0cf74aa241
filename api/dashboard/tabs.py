"""The tabs of a job's page: what each one reads, beside the job itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy.orm import Session

from api import wire
from api.auth import Caller
from api.dashboard import deliveries, gates, lineage, log_text, plots, timeline
from api.store import attempts, events, metrics
from lathe.models import Artifact, Job
from optcore.report import Report

Tab = Literal["overview", "plots", "logs", "artifacts", "recipe", "deliveries"]
Values = dict[str, Any]
WORST_LAYERS = 5


@dataclass(frozen=True)
class Subject:
    """A job before the eyes of a viewer."""

    session: Session
    viewer: Caller
    job: Job
    files: Sequence[Artifact]
    report: Report | None
    now: datetime
    """The database's time."""


@dataclass(frozen=True)
class Room:
    """One tab."""

    title: str
    path: str
    """Below the job's own."""
    read: Callable[[Subject], Values]
    breath_seconds: float = 0.25
    """Between two messages of its stream: many events in a row become one."""
    with_report: bool = False


def _overview(subject: Subject) -> Values:
    session, job, report = subject.session, subject.job, subject.report
    marks = [wire.event(row) for row in events.of_types(session, job.id, timeline.TYPES, timeline.MAX_EVENTS)]
    layers = sorted(report.layer_errors, key=lambda each: -each.relative_error) if report else []
    return {
        "report": report,
        "timeline": timeline.draw(marks, [stage.name for stage in job.stages], subject.now),
        "attempts": [wire.attempt(row) for row in attempts.of(session, job.id)],
        "gates": gates.held(job.recipe, report, _measured(subject)),
        "layers": plots.of_layers(report),
        "worst_layers": layers[:WORST_LAYERS],
        "log_end": log_text.end(session, job.id) if job.status == "failed" else "",
    }


def _measured(subject: Subject) -> gates.Measured:
    found = {}
    for stage, name in gates.metrics_of(subject.job.recipe):
        for bucket in metrics.curves(subject.session, subject.job.id, points=1, stage=stage, name=name):
            found[stage, name] = bucket.last
    return found


def _plots(subject: Subject) -> Values:
    found = metrics.curves(subject.session, subject.job.id, points=plots.POINTS, stage=None, name=None)
    curves = wire.curves(found)
    return {
        "plots": [*plots.of_metrics(curves), *plots.of_report(subject.report, curves)],
        "layers": plots.of_layers(subject.report, curves),
        "singles": plots.single(curves),
        "memory": [stage for stage in subject.job.stages if stage.peak_memory_bytes],
    }


def _recipe(subject: Subject) -> Values:
    return {"recipe": lineage.recipe(subject.job), "origin": lineage.origin(subject.job, subject.files, subject.report)}


def _deliveries(subject: Subject) -> Values:
    scopes = subject.viewer.scopes
    may_read = "webhooks:read" in scopes
    return {
        "may_read": may_read,
        "may_redeliver": "webhooks:write" in scopes,
        "messages": deliveries.of_job(subject.session, subject.viewer, subject.job.id) if may_read else [],
    }


def _nothing(_subject: Subject) -> Values:
    return {}


TABS: dict[Tab, Room] = {
    "overview": Room("Overview", "", _overview, with_report=True),
    "plots": Room("Plots", "/plots", _plots, breath_seconds=1.0, with_report=True),
    "logs": Room("Logs", "/logs", _nothing),
    "artifacts": Room("Artifacts", "/artifacts", _nothing),
    "recipe": Room("Recipe & lineage", "/recipe", _recipe, with_report=True),
    "deliveries": Room("Deliveries", "/deliveries", _deliveries),
}
