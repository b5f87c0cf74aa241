"""Commands that send a job and look at jobs."""

from itertools import islice
from typing import Annotated, Any, get_args

import typer

from lathe.cli.choices import some_of
from lathe.cli.group import FAILED, explain
from lathe.cli.output import console, money, print_each, print_json, print_measurements, print_table, say
from lathe.cli.recipe_file import ModelName, RecipePath, read_recipe
from lathe.cli.session import AsJson, JobId, JobIds, connect
from lathe.display.stages import about
from lathe.display.watching import stages_shown
from lathe.errors import LatheError
from lathe.job import Job
from lathe.models import JobStatus, Stage
from optcore.report.numbers import format_peaks, format_seconds


def _header(value: str | None) -> str | None:
    if value is not None and not (value.isascii() and value.isprintable() and 0 < len(value) <= KEY_characters):
        raise typer.BadParameter(f"1 to {KEY_characters} printable characters of ASCII")
    return value


KEY_characters = 255
IdempotencyKey = Annotated[
    str | None,
    typer.Option(
        callback=_header, help="Sent again within 24 hours with the same recipe, it answers the same job, not a second."
    ),
]


def submit(
    recipe: RecipePath,
    model: ModelName = None,
    idempotency_key: IdempotencyKey = None,
    follow: Annotated[bool, typer.Option("--watch", help="Stay until the job has ended.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send a recipe to the service. With --watch, exit with 0 only when the job succeeded.

    Ctrl-C ends the watching; the job goes on.
    """
    loaded = read_recipe(recipe, model)
    with connect() as client:
        job = client.jobs.create(loaded, idempotency_key=idempotency_key)
        if not as_json:
            console.out(job.id, highlight=False)
        if follow:
            job = _watched(job, quiet=as_json)
            if not as_json:
                _conclude(job)
        if as_json:
            print_json(job)
    if follow and job.status != "succeeded":
        raise typer.Exit(FAILED)


def ls(
    status: Annotated[list[str] | None, some_of(get_args(JobStatus), "Only jobs with this status")] = None,
    technique: Annotated[str | None, typer.Option(help="Only jobs whose chain has this technique.")] = None,
    model: Annotated[str | None, typer.Option(help="Only jobs of this model: its id or path, whole.")] = None,
    name: Annotated[str | None, typer.Option(help="Only jobs whose name has this in it.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Only jobs marked so; may be repeated.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Newest jobs to show.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    wanted: Any = tuple(status or ())
    marks = dict(map(_pair, metadata or ()))
    with connect() as client:
        found = client.jobs.list(
            status=wanted,
            technique=technique,
            model=model,
            name_contains=name,
            metadata=marks,
            page_size=min(limit, 100),
        )
        jobs = list(islice(found, limit))
    if as_json:
        print_each(jobs)
    else:
        print_table(("job", "status", "stages", "model", "created"), map(_row, jobs))


def show(job_id: JobId, as_json: AsJson = False) -> None:
    """Show a job, its stages and, once there is one, the before/after table."""
    with connect() as client:
        job = client.jobs.get(job_id)
        if as_json:
            print_json(job)
            return
        print_table(("job", "status", "stages", "model", "created"), [_row(job)])
        if job.waiting:
            say(f"waiting: {job.waiting.message}")
        header = ("stage", "status", "phase", "progress", "expected", "took", "memory expected", "peak memory")
        print_table(header, map(_stage_row, job.stages))
        if job.cost:
            say(f"cost{'' if job.is_terminal else ' so far'}: {money(job.cost.amount, job.cost.currency)}")
        _conclude(job)


def wait(
    job_ids: JobIds,
    timeout: Annotated[float | None, typer.Option(min=0, help="Seconds in all; no limit when absent.")] = None,
    as_json: AsJson = False,
) -> None:
    """Wait until jobs have ended. Exit with 0 only when all succeeded, with 3 when the time was up."""
    with connect() as client:
        jobs = client.jobs.wait(job_ids, timeout=timeout)
    for job in jobs:
        if as_json:
            print_json(job)
        else:
            console.out(f"{job.id} {job.status}", highlight=False)
            if job.failure:
                explain(job.failure)
    if any(job.status != "succeeded" for job in jobs):
        raise typer.Exit(FAILED)


def _watched(job: Job, *, quiet: bool) -> Job:
    try:
        if quiet:
            return job.wait()
        with stages_shown() as hear:
            for event in job.events(stream=True):
                hear(event.type, event.data, event.at.timestamp())
        return job.refresh()
    except KeyboardInterrupt:
        say(f"the job goes on: `lathe logs -f {job.id}` follows it, `lathe cancel {job.id}` stops it")
        raise


def _conclude(job: Job) -> None:
    if job.failure:
        explain(job.failure)
    if job.status == "succeeded":
        print_measurements(job.report())
    if job.publish.status != "not_requested":
        say(f"publish: {job.publish.status} {job.publish.url or ''}")
        if job.publish.failure:
            explain(job.publish.failure)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise LatheError(f"not KEY=VALUE: {text!r}", remedy="write --metadata team=nlp")
    return key, value


def _row(job: Job) -> tuple[object, ...]:
    done = sum(stage.status in ("succeeded", "cached") for stage in job.stages)
    stages = f"{done}/{len(job.stages)}" if job.stages else ""
    return job.id, job.status, stages, job.name or job.recipe.model, f"{job.created_at:%Y-%m-%d %H:%M}"


def _stage_row(stage: Stage) -> tuple[object, ...]:
    told = stage.estimate
    return (
        stage.name,
        stage.status,
        stage.phase or "",
        f"{stage.done}/{stage.total}" if stage.total else "",
        about(told.seconds) if told else "",
        "" if stage.seconds is None else format_seconds(stage.seconds),
        format_peaks(told.host_memory_bytes, told.gpu_memory_bytes or None) if told else "",
        format_peaks(stage.peak_memory_bytes, stage.peak_gpu_memory_bytes) if stage.peak_memory_bytes else "",
    )
