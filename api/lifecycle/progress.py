"""What the engine says, written down: stages, events, the pinned recipe."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func
from sqlalchemy.orm import Session

from api.lifecycle.claims import Claim, held
from api.store import events as history
from api.store import stages
from api.store.models import Job
from optcore.events import AnyEvent, Progress, RecipeResolved, RunPlanned, StageFinished, StageStarted


def record(session: Session, claim: Claim, events: Sequence[AnyEvent]) -> None:
    """Apply a batch of engine events in order. Of progress in one phase only the last is kept. Raises `Fenced`."""
    kept = _without_stale_progress(events)
    values: dict[str, Any] = {"last_seq": Job.last_seq + len(kept)}
    pinned = [event.recipe for event in kept if isinstance(event, RecipeResolved)]
    if pinned:
        values["resolved"] = pinned[-1]
    job = held(session, claim, **values)
    for event in kept:
        _apply(session, job.id, event)
    history.append(session, job.id, job.last_seq, [(event.event, _data(event)) for event in kept])


def _without_stale_progress(events: Sequence[AnyEvent]) -> list[AnyEvent]:
    last = {(e.stage, e.phase): i for i, e in enumerate(events) if isinstance(e, Progress)}
    return [e for i, e in enumerate(events) if not isinstance(e, Progress) or last[e.stage, e.phase] == i]


def _apply(session: Session, job_id: str, event: AnyEvent) -> None:
    match event:
        case RunPlanned():
            stages.plan(session, job_id, event.stages)
        case StageStarted():
            begun = {"started_at": func.now(), "finished_at": None, "phase": None, "done": 0, "total": 0}
            stages.put(session, job_id, event.stage, status="running", key=event.key, **begun)
        case Progress():
            stages.put(session, job_id, event.stage, phase=event.phase, done=event.done, total=event.total)
        case StageFinished():
            spent = {"seconds": event.seconds, "peak_memory_bytes": event.peak_memory_bytes}
            stages.finish(session, job_id, event.stage, event.key, cached=event.cached, **spent)


def _data(event: AnyEvent) -> dict[str, Any]:
    return event.model_dump(mode="json", exclude={"event"})
