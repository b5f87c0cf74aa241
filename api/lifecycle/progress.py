"""What the engine says, written down: stages, events, the pinned recipe."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func
from sqlalchemy.orm import Session

from api.lifecycle.announcements import announce
from api.lifecycle.claims import Claim, held
from api.store import events as history
from api.store import logs, metrics, stage_costs, stages
from api.store.models import Job
from optcore.events import (
    AnyEvent,
    Metric,
    Progress,
    RecipeResolved,
    RunEstimated,
    RunPlanned,
    StageFinished,
    StageStarted,
)


def record(session: Session, claim: Claim, events: Sequence[AnyEvent]) -> None:
    """Apply a batch of engine events in order. Of what is said often, the last is kept. Raises `Fenced`."""
    kept = _thinned(events)
    values: dict[str, Any] = {"last_seq": Job.last_seq + len(kept)}
    pinned = [event.recipe for event in kept if isinstance(event, RecipeResolved)]
    if pinned:
        values["resolved"] = pinned[-1]
    job = held(session, claim, **values)
    for sequence, event in enumerate(kept, start=job.last_seq - len(kept) + 1):
        _apply(session, job, sequence, event)
    metrics.put(session, job.id, [event for event in events if isinstance(event, Metric)])
    history.append(session, job.id, job.last_seq, [(event.event, _data(event)) for event in kept])


def record_log(session: Session, claim: Claim, text: str) -> None:
    """Keep what the engine wrote on standard error since the last time. Raises `Fenced`."""
    held(session, claim)
    logs.append(session, claim.job_id, claim.epoch, text)


def _thinned(events: Sequence[AnyEvent]) -> list[AnyEvent]:
    """Of progress in one phase, and of one metric, only the newest; metrics are kept whole elsewhere, and of samples,
    which say nothing that happened, only there."""
    events = [event for event in events if not (isinstance(event, Metric) and event.is_sample)]
    series = [_series(event) for event in events]
    last = {name: i for i, name in enumerate(series)}
    return [event for i, (event, name) in enumerate(zip(events, series, strict=True)) if not name or last[name] == i]


def _series(event: AnyEvent) -> tuple[str, str, str] | None:
    match event:
        case Progress():
            return "progress", event.stage, event.phase
        case Metric():
            return "metric", event.stage, event.name
    return None


def _apply(session: Session, job: Job, sequence: int, event: AnyEvent) -> None:
    match event:
        case RunPlanned():
            stages.plan(session, job.id, event.stages)
        case RunEstimated():
            stages.expect(session, job.id, event.machine.kind, event.stages)
        case StageStarted():
            begun = {"started_at": func.now(), "finished_at": None, "phase": None, "done": 0, "total": 0}
            stages.put(session, job.id, event.stage, status="running", key=event.key, **begun)
        case Progress():
            stages.put(session, job.id, event.stage, phase=event.phase, done=event.done, total=event.total)
        case StageFinished():
            spent = event.model_dump(include={"seconds", "peak_memory_bytes", "peak_gpu_memory_bytes"})
            if stages.finish(session, job.id, event.stage, event.key, cached=event.cached, **spent):
                announce(session, job, "stage.succeeded", stage=event.stage, sequence=sequence)
                _learn(session, job, event)


def _learn(session: Session, job: Job, event: StageFinished) -> None:
    """Keep what a stage took, for later estimates. A later attempt may have gone on with half of the work done."""
    if not event.cached and job.attempt == 1 and (seen := stages.cost(session, job.id, event.stage)):
        stage_costs.remember(session, seen)


def _data(event: AnyEvent) -> dict[str, Any]:
    return event.model_dump(mode="json", exclude={"event"})
