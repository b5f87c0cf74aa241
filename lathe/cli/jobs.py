"""Commands about jobs of a service."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lathe.cli.engine import RecipePath
from lathe.cli.group import explain
from lathe.cli.output import console, errors, print_json, print_measurements, print_table, printable_lines
from lathe.cli.session import AsJson, JobId, connect
from lathe.cli.view import watch
from lathe.client import Client
from lathe.models import Artifact, Job
from optcore.report.numbers import format_bytes


def submit(
    recipe: RecipePath,
    follow: Annotated[bool, typer.Option("--watch", help="Stay until the job has ended.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send a recipe to the service. With --watch, exit with 0 only when the job succeeded."""
    with connect() as client:
        job = client.jobs.create_from_file(recipe)
        if not as_json:
            console.out(job.id, highlight=False)
        if follow:
            _watch(client, job.id, quiet=as_json)
            job = client.jobs.get(job.id)
            _conclude(client, job, quiet=as_json)
        if as_json:
            print_json(job)
    if follow and job.status != "succeeded":
        raise typer.Exit(1)


def ls(
    status: Annotated[list[str] | None, typer.Option(help="Only jobs with this status; may be repeated.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Newest jobs to show.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    wanted: Any = tuple(status or ())
    with connect() as client:
        jobs = [
            job
            for job, _ in zip(client.jobs.list(status=wanted, page_size=min(limit, 100)), range(limit), strict=False)
        ]
    if as_json:
        for job in jobs:
            print_json(job)
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
        print_table(
            ("stage", "status", "phase", "progress"),
            [
                (stage.name, stage.status, stage.phase or "", f"{stage.done}/{stage.total}" if stage.total else "")
                for stage in job.stages
            ],
        )
        _conclude(client, job, quiet=False)


def events(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    after: Annotated[int, typer.Option(min=0, help="Only events above this number.")] = 0,
) -> None:
    """Print a job's history as JSON, one event a line."""
    with connect() as client:
        for event in client.jobs.events(job_id, after=after, stream=follow):
            print_json(event)


def wait(
    job_ids: Annotated[list[str], typer.Argument(metavar="JOB...", help="Ids of jobs, `job_...`.")],
    timeout: Annotated[float | None, typer.Option(min=0, help="Seconds for each job; no limit when absent.")] = None,
    as_json: AsJson = False,
) -> None:
    """Wait until jobs have ended. Exit with 0 only when all succeeded."""
    with connect() as client:
        jobs = [client.jobs.wait(job_id, timeout=timeout) for job_id in job_ids]
    for job in jobs:
        if as_json:
            print_json(job)
        else:
            console.out(f"{job.id} {job.status}", highlight=False)
            if job.failure:
                explain(job.failure)
    if any(job.status != "succeeded" for job in jobs):
        raise typer.Exit(1)


def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
) -> None:
    """Print what the engine wrote on standard error."""
    with connect() as client:
        for chunk in client.jobs.logs(job_id, follow=follow):
            console.print(printable_lines(chunk.text), soft_wrap=True)


def download(job_id: JobId, out: Annotated[Path, typer.Option(help="Folder to write to; made when absent.")]) -> None:
    """Fetch a job's files, checked by SHA-256. Run again after an interruption, it goes on where it was."""
    with connect() as client:
        paths = client.artifacts.download(job_id, out, on_progress=_progress if errors.is_terminal else None)
    errors.print(f"{len(paths)} files in {out}", markup=False, highlight=False, soft_wrap=True)


def recipe(job_id: JobId) -> None:
    """Print a job's recipe as YAML, with commits pinned once they are known."""
    with connect() as client:
        console.out(client.jobs.recipe(job_id).rstrip("\n"), highlight=False)


def _watch(client: Client, job_id: str, *, quiet: bool) -> None:
    pairs = ((event.type, event.data) for event in client.jobs.events(job_id, stream=True))
    if quiet:
        for _ in pairs:
            pass
    else:
        watch(pairs)


def _conclude(client: Client, job: Job, *, quiet: bool) -> None:
    if quiet:
        return
    if job.failure:
        explain(job.failure)
    if job.status == "succeeded":
        print_measurements(client.jobs.report(job.id))
    if job.publish.status != "not_requested":
        errors.print(f"publish: {job.publish.status} {job.publish.url or ''}", markup=False, soft_wrap=True)
        if job.publish.failure:
            explain(job.publish.failure)


def _row(job: Job) -> tuple[object, ...]:
    done = sum(stage.status in ("succeeded", "cached") for stage in job.stages)
    stages = f"{done}/{len(job.stages)}" if job.stages else ""
    return job.id, job.status, stages, job.name or job.recipe.model, f"{job.created_at:%Y-%m-%d %H:%M}"


def _progress(artifact: Artifact, received_bytes: int) -> None:
    if received_bytes == artifact.bytes:
        errors.print(f"{artifact.path}  {format_bytes(artifact.bytes)}", markup=False, highlight=False)
