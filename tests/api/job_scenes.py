"""Jobs in states worth looking at, driven as a worker drives them."""

import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from dashboard_service import Service, report_of
from sqlalchemy import select, update

from api import lifecycle
from api.lifecycle import Claim
from api.store.models import Attempt, Event, Job, Stage
from optcore.errors import Failure
from optcore.estimate.document import Machine, StageEstimate
from optcore.events import (
    AnyEvent,
    Metric,
    Notice,
    Progress,
    RecipeResolved,
    RunEstimated,
    RunPlanned,
    StageFinished,
    StageStarted,
)
from optcore.manifest import Parent
from optcore.recipe import Recipe, recipe_from
from optcore.report import Report, Series, Trial

OWNER = "acme"
PLAN = ("0-fetch", "1-ptq", "1-ptq-gate", "1-ptq-fallback1", "1-ptq-fallback1-gate", "2-qad", "3-export", "4-evaluate")
GATED: dict[str, Any] = {
    "name": "qwen3-0.6b nvfp4",
    "model": {"id": "Qwen/Qwen3-0.6B"},
    "calibration": {"dataset": "python-stdlib", "samples": 64, "sequence_length": 512},
    "chain": [
        {
            "technique": "ptq",
            "scheme": "nvfp4",
            "gate": {"metric": "kl", "max": 0.05, "on_fail": "fallback"},
            "fallback": [{"scheme": "fp8"}],
        },
        {"technique": "qad", "steps": 400},
    ],
    "metadata": {"team": "nlp"},
}
EXPECTED = dict(zip(PLAN, (9.0, 38.0, 5.0, 38.0, 5.0, 240.0, 5.0, 35.0), strict=True))


def gated() -> Recipe:
    """A recipe with a gate that falls back, and a stage that trains."""
    return recipe_from(GATED)


def expected(seconds_of: Mapping[str, float]) -> RunEstimated:
    """What stages should take: these seconds, and 3 GB each."""
    sizes = {"host_memory_bytes": 3 * 10**9, "raw_memory_bytes": 3 * 10**9}
    stages = tuple(
        StageEstimate(
            stage=name,
            kind="ptq gptq",
            seconds=seconds,
            seconds_low=seconds / 2,
            seconds_high=seconds * 2,
            raw_seconds=seconds,
            **sizes,
        )
        for name, seconds in seconds_of.items()
    )
    return RunEstimated(machine=Machine(cores=16), stages=stages)


def finished(stage: str, seconds: float = 2.5, *, cached: bool = False, gigabytes: float = 2.0) -> list[AnyEvent]:
    """A stage from its start to its end."""
    spent = {"seconds": seconds, "peak_memory_bytes": int(gigabytes * 1e9)}
    return [StageStarted(stage=stage, key="k"), StageFinished(stage=stage, key="k", cached=cached, **spent)]


def losses(stage: str, first: int, last: int) -> list[AnyEvent]:
    """What a training stage says of its steps."""
    found: list[AnyEvent] = []
    for step in range(first, last):
        wobble = math.sin(step * 1.7) * 0.08 + math.sin(step * 0.31) * 0.05
        found.append(Metric(stage=stage, name="loss", value=0.35 + 1.6 * math.exp(-step / 90) + wobble, step=step))
        rate = 1e-4 * min(1, step / 40) * (0.5 + 0.5 * math.cos(math.pi * step / 400))
        found.append(Metric(stage=stage, name="learning_rate", value=rate, step=step))
        if step % 40 == 0:
            value = 0.4 + 1.5 * math.exp(-step / 80)
            found.append(Metric(stage=stage, name="validation_kl", value=value, step=step))
    return found


def running(service: Service, recipe: Recipe | None = None) -> Claim:
    """A job whose first attempt was lost, whose first candidate missed its gate, and that trains now."""
    job_id = service.submit(OWNER, recipe or gated())
    lost = service.claim(job_id)
    service.record(
        lost, RunPlanned(stages=PLAN[:3] + PLAN[5:]), *finished("0-fetch", 8), StageStarted(stage="1-ptq", key="p")
    )
    write(service, lost, "loading Qwen/Qwen3-0.6B\ncalibrating layer 0\n")
    _lose(service, job_id)
    claim = service.claim(job_id)
    service.record(claim, RunPlanned(stages=PLAN), *finished("0-fetch", 0.1, cached=True), expected(EXPECTED))
    service.record(claim, *finished("1-ptq", 41, gigabytes=3.1), *finished("1-ptq-gate", 6, gigabytes=2.4))
    service.record(claim, Metric(stage="1-ptq-gate", name="kl", value=0.0712))
    service.record(claim, Notice(stage="1-ptq", message="1-ptq: kl is 0.0712, the gate asks for at most 0.05"))
    service.record(claim, *finished("1-ptq-fallback1", 38, gigabytes=3.0), *finished("1-ptq-fallback1-gate", 6))
    service.record(claim, Metric(stage="1-ptq-fallback1-gate", name="kl", value=0.0121))
    service.record(claim, StageStarted(stage="2-qad", key="q"), *losses("2-qad", 1, 260))
    service.record(claim, Progress(stage="2-qad", phase="training", done=260, total=400))
    write(service, claim, "".join(f"step {step}: loss {2 / step:.4f}\n" for step in range(1, 260)))
    _spread(service, job_id)
    return claim


def succeeded(service: Service, measured: Report | None = None) -> str:
    """The same job at its end, with `measured` as its report."""
    claim = running(service)
    service.record(claim, *losses("2-qad", 260, 400), *finished("2-qad", 212, gigabytes=5.4)[1:])
    pinned = gated().model_dump(mode="json")
    pinned["model"]["revision"] = "c1899de289a04d12100db370d81485cdf75e47ca"
    service.record(claim, RecipeResolved(recipe=pinned), *finished("3-export", 4), *finished("4-evaluate", 31))
    service.finish(claim, measured or report(), more=("model.safetensors", "config.json", "model.sig"))
    return claim.job_id


def failed(service: Service, recipe: Recipe | None = None) -> str:
    """A job that ran out of memory, with a log that says so."""
    claim = service.claim(service.submit(OWNER, recipe or gated()))
    service.record(
        claim, RunPlanned(stages=PLAN[:3] + PLAN[5:]), *finished("0-fetch", 8), StageStarted(stage="1-ptq", key="p")
    )
    write(service, claim, "".join(f"layer {layer}: error {layer / 1000:.4f}\n" for layer in range(120)))
    write(service, claim, "\x1b[31mtorch.OutOfMemoryError\x1b[0m: tried to allocate 20.00 GiB\nthe very last line\n")
    told = {"message": "the GPU's memory is full", "remedy": "choose a smaller batch or a larger GPU", "stage": "1-ptq"}
    with service.sessions.begin() as session:
        lifecycle.fail(session, claim, Failure(kind="out_of_memory", code="gpu_memory", **told))
    return claim.job_id


def write(service: Service, claim: Claim, text: str) -> None:
    """A piece of the engine's log."""
    with service.sessions.begin() as session:
        lifecycle.record_log(session, claim, text)


def report() -> Report:
    """The report of a run with a gate that fell back."""
    trial = {"metric": "kl", "bound": 0.05, "better": "lower"}
    then = "went on to 1-ptq-fallback1"
    parent = Parent(
        role="source", name="Qwen/Qwen3-0.6B", revision="c1899de289a04d12100db370d81485cdf75e47ca", sha256="a" * 64
    )
    return report_of(gated()).model_copy(
        update={
            "trials": (
                Trial(stage="1-ptq", tried="NVFP4 W4A4, blocks of 16", value=0.0712, passed=False, then=then, **trial),
                Trial(stage="1-ptq-fallback1", tried="FP8 W8A8", value=0.0121, passed=True, then="kept", **trial),
            ),
            "lineage": (parent,),
            "data_digest": "b" * 64,
            "recipe_digest": "c" * 64,
            "environment": {"hardware": "AMD EPYC 7B13, 2 threads", "torch": "2.13.0"},
            "series": (
                Series(
                    name="survival",
                    title="Survival of drafted tokens",
                    unit="share",
                    points=((1, 0.9), (2, 0.7), (3, 0.4)),
                ),
            ),
        }
    )


def _lose(service: Service, job_id: str) -> None:
    with service.sessions.begin() as session:
        held = session.get(Job, job_id, with_for_update=True)
        assert held is not None
        held.lease_until = held.created_at - timedelta(seconds=1)
    with service.sessions.begin() as session:
        lifecycle.expire_leases(session)


def _spread(service: Service, job_id: str) -> None:
    """Move what happened within a second apart, so that there is something to see."""
    step = timedelta(seconds=9)
    with service.sessions.begin() as session:
        told = session.execute(select(Event.seq, Event.type).where(Event.job_id == job_id).order_by(Event.seq)).all()
        now = session.scalar(select(Job.claimed_at).where(Job.id == job_id))
        assert now is not None
        moved = [(event, now - step * (len(told) - number)) for number, event in enumerate(told)]
        for event, at in moved:
            session.execute(update(Event).where(Event.job_id == job_id, Event.seq == event.seq).values(at=at))
        first, second = (at for event, at in moved if event.type == "job.running")
        (lost,) = (at for event, at in moved[1:] if event.type == "job.queued")
        _move_rows(session, job_id, now, (moved[0][1], first, lost, second))


def _move_rows(session: Any, job_id: str, now: datetime, times: tuple[datetime, datetime, datetime, datetime]) -> None:
    created, first, lost, second = times
    run = {"run_seconds": (lost - first).total_seconds(), "claimed_at": second}
    session.execute(update(Job).where(Job.id == job_id).values(created_at=created, started_at=first, **run))
    for epoch, held in ((1, {"started_at": first, "finished_at": lost}), (2, {"started_at": second})):
        session.execute(update(Attempt).where(Attempt.job_id == job_id, Attempt.epoch == epoch).values(**held))
    session.execute(
        update(Stage)
        .where(Stage.job_id == job_id, Stage.status == "running")
        .values(started_at=now - timedelta(seconds=140))
    )
