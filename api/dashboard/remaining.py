"""How long a job will still take, as far as its stages say."""

from dataclasses import dataclass
from datetime import datetime

from lathe.models import Job, Stage


@dataclass(frozen=True)
class Remaining:
    """A guess."""

    seconds: float
    whole: bool
    """Whether it is for the job, not for the running stage alone."""


def remaining(job: Job, now: datetime) -> Remaining | None:
    """The rest of the running stage, and the stages to come where each was estimated; None when nothing is known."""
    running = next((each for each in job.stages if each.status == "running"), None)
    left = None if running is None else _rest(running, now)
    if left is None:
        return None
    coming = [each.estimate for each in job.stages if each.status == "pending"]
    known = [each.seconds for each in coming if each is not None]
    if len(known) < len(coming):
        return Remaining(left, whole=False)
    return Remaining(left + sum(known), whole=True)


def _rest(stage: Stage, now: datetime) -> float | None:
    """At the pace that it had so far; by its estimate before it has said how far it is."""
    if stage.started_at is None:
        return None
    spent = max(0.0, (now - stage.started_at).total_seconds())
    if 0 < stage.done < stage.total:
        return spent * (stage.total - stage.done) / stage.done
    if stage.estimate is None or spent >= stage.estimate.seconds:
        return None
    return stage.estimate.seconds - spent
