"""Which service a command talks to, and with which key: the environment, else what `lathe up` left on this machine."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lathe.errors import LatheError

if TYPE_CHECKING:
    from lathe.client import Client

COMPLETION_seconds = 2.0


def home() -> Path:
    """Where `lathe up` and `lathe run` keep their data by default: LATHE_HOME, else ~/.lathe."""
    return Path(os.environ.get("LATHE_HOME") or Path.home() / ".lathe")


def connect() -> "Client":
    """A client; a key on the command line would be readable by every process of the machine, so there is no option."""
    from lathe.client import Client  # what needs no service starts without an HTTP client

    url, key = os.environ.get("LATHE_URL"), os.environ.get("LATHE_API_KEY")
    if not (url or key):
        url, key = _left_by_up()
    return Client(url, key)


def _left_by_up() -> tuple[str | None, str | None]:
    path = home() / "client.json"
    try:
        document = json.loads(path.read_text())
        return str(document["url"]), str(document["api_key"])
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LatheError(f"cannot read {path}: {error!r}", remedy="remove it and start `lathe up` again") from error


def complete_jobs(incomplete: str) -> list[tuple[str, str]]:
    """Ids of the newest jobs with what they are, for the shell; none where no service answers soon."""
    try:
        with connect() as client:
            jobs = client.with_options(timeout=COMPLETION_seconds, max_retries=0).jobs
            newest = [job for job, _ in zip(jobs.list(page_size=50), range(50), strict=False)]
    except LatheError:
        return []
    return [(job.id, f"{job.status} {job.name or ''}") for job in newest if job.id.startswith(incomplete)]


def complete_templates(incomplete: str) -> list[tuple[str, str]]:
    """Names of the service's templates."""
    try:
        with connect() as client:
            found = client.with_options(timeout=COMPLETION_seconds, max_retries=0).templates()
    except LatheError:
        return []
    return [(item.name, item.title) for item in found if item.name.startswith(incomplete)]


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, `job_...`.", autocompletion=complete_jobs)]
JobIds = Annotated[
    list[str], typer.Argument(metavar="JOB...", help="Ids of jobs, `job_...`.", autocompletion=complete_jobs)
]
