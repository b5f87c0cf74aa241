"""Commands that change a job."""

from typing import Annotated

import typer

from lathe.cli.output import console, print_json, tell_deleted
from lathe.cli.session import AsJson, JobId, connect
from lathe.models import Job


def cancel(job_id: JobId, as_json: AsJson = False) -> None:
    """Ask a job to stop."""
    with connect() as client:
        _tell(client.jobs.cancel(job_id), as_json)


def pause(job_id: JobId, as_json: AsJson = False) -> None:
    """Set a job aside and free its worker."""
    with connect() as client:
        _tell(client.jobs.pause(job_id), as_json)


def resume(job_id: JobId, as_json: AsJson = False) -> None:
    """Queue a paused job again; it goes on behind its last finished layer."""
    with connect() as client:
        _tell(client.jobs.resume(job_id), as_json)


def retry(job_id: JobId, as_json: AsJson = False) -> None:
    """Begin a new run of a job that failed or was cancelled."""
    with connect() as client:
        _tell(client.jobs.retry(job_id), as_json)


def publish(
    job_id: JobId,
    repo_id: Annotated[str | None, typer.Option("--repo", help="Where to; else where the recipe says.")] = None,
    as_json: AsJson = False,
) -> None:
    """Push a finished job to the Hub, or once more after a failed push."""
    with connect() as client:
        _tell(client.jobs.publish(job_id, {"repo_id": repo_id} if repo_id else None), as_json)


def delete(job_id: JobId, as_json: AsJson = False) -> None:
    """Forget a job that is over, with its history and its files."""
    with connect() as client:
        client.jobs.delete(job_id)
    tell_deleted(job_id, as_json)


def _tell(job: Job, as_json: bool) -> None:
    if as_json:
        print_json(job)
    else:
        console.out(f"{job.id} {job.status}", highlight=False)
