"""How things are called and written on the pages."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from api.dashboard.remaining import remaining
from lathe.estimate_models import Estimate
from lathe.models import Job, Stage
from lathe.webhook_models import WebhookEndpoint
from optcore.estimate.document import Machine
from optcore.report.numbers import format_bytes, format_change, format_seconds, format_value, verdict

DONE = ("succeeded", "cached")
_EMPTY = "–"  # noqa: RUF001  an en dash: nothing to show
_SAFE_LINKS = ("https://", "http://")
_THEN = " \u203a "
"""Between steps: some fonts have no arrow."""


def iso(at: datetime) -> str:
    """For programs, in UTC."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def clock(at: datetime) -> str:
    """For people whose browser runs no script; the script writes their own time."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def seconds(value: float | None) -> str:
    """A duration, or a dash."""
    return _EMPTY if value is None else format_seconds(value)


def size(value: float | None) -> str:
    """A size, or a dash."""
    return _EMPTY if value is None else format_bytes(value)


def title(job: Job) -> str:
    """What a job is called."""
    return job.name or str(job.recipe.model)


def chain(job: Job) -> str:
    """The techniques in order, such as `ptq nvfp4`; with a goal or a sweep, what all candidates begin with."""
    steps = [step.model_dump() for step in job.recipe.chain]
    said = _THEN.join(" ".join(str(step[k]) for k in ("technique", "scheme") if k in step) for step in steps)
    several = "a sweep" if job.recipe.sweep else "a goal"
    return _THEN.join(filter(None, (said, several))) if job.recipe.is_race else said


def stages_done(job: Job) -> int:
    """How many stages are over, and well."""
    return sum(stage.status in DONE for stage in job.stages)


def took(job: Job) -> float | None:
    """Seconds in workers' hands, by the attempts of its run that are over; None before the first."""
    return None if job.started_at is None else round(job.run_seconds, 2)


def worked_since(job: Job) -> datetime | None:
    """Where the clock of its work would have begun, had it never stopped; None where no worker has the job."""
    return job.claimed_at - timedelta(seconds=job.run_seconds) if job.claimed_at else None


def headline(job: Job) -> str:
    """The state in one sentence, for eyes and for screen readers."""
    running = next((stage for stage in job.stages if stage.status == "running"), None)
    if job.status == "queued":
        return "Waiting for a worker" + (f", attempt {job.attempt + 1}" if job.attempt else "")
    if job.status == "running" and running:
        return f"Stage {job.stages.index(running) + 1} of {len(job.stages)}: {running.name}"
    sentences: Mapping[str, str] = {
        "running": "A worker has the job",
        "pausing": "Pausing; the worker finishes the current layer",
        "paused": "Set aside; what is finished is kept",
        "cancelling": "Stopping; the worker ends the current stage",
        "succeeded": "Finished: the checkpoint and its report are ready",
        "failed": "Ended without a checkpoint",
        "cancelled": "Ended because its owner asked",
    }
    return sentences[job.status]


def roughly(value: float) -> str:
    """A duration that is a guess: one unit is enough."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if value >= 2 * length:
            return f"{round(value / length)} {unit}"
    return f"{max(1, round(value)) if value < 10 else 5 * round(value / 5)} s"


def tick(value: float) -> str:
    """A round duration on an axis."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if value >= length:
            return f"{value / length:g} {unit}"
    return f"{value:g} s"


def silence(endpoint: WebhookEndpoint) -> str:
    """Why a webhook receiver gets nothing any more."""
    if endpoint.disabled_reason == "gone":
        return "it answered that it is gone for good"
    return f"{endpoint.dead_messages} messages in a row were given up"


def forecast(estimate: Estimate) -> tuple[str, str]:
    """What an estimate comes to, as the class and the words of a badge."""
    if not estimate.stages:
        return ("" if estimate.allowed_to_proceed else "failed"), "no estimate"
    if estimate.allowed_to_proceed:
        return "succeeded", "fits"
    is_size = all(each.of_machine for each in estimate.problems if each.fatal)
    return "failed", "does not fit" if is_size else "cannot run"


def machine(found: Machine) -> str:
    """What a job would run on."""
    if found.device == "cuda":
        return f"{found.gpus} × {found.gpu_kind or 'GPU of any kind'}"  # noqa: RUF001  a multiplication sign
    return "1 CPU core" if found.cores == 1 else f"{found.cores} CPU cores"


def share(stage: Stage) -> str:
    """How far a stage is, in percent; empty when it has not said."""
    return f"{min(100, 100 * stage.done // stage.total)}%" if stage.total > 0 else ""


def link(url: str | None) -> str:
    """An address that may be an `href`; empty for one that could run something."""
    return url if url and url.startswith(_SAFE_LINKS) else ""


FILTERS: dict[str, Callable[..., Any]] = {
    "iso": iso,
    "clock": clock,
    "seconds": seconds,
    "size": size,
    "title_of": title,
    "chain_of": chain,
    "done_of": stages_done,
    "took": took,
    "worked_since": worked_since,
    "headline": headline,
    "remaining": remaining,
    "roughly": roughly,
    "tick": tick,
    "silence": silence,
    "share": share,
    "forecast": forecast,
    "machine": machine,
    "link": link,
    "value": format_value,
    "change": format_change,
    "verdict": verdict,
}
