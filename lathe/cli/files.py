"""Commands about what a job leaves: its files, its report, its recipe."""

from pathlib import Path
from typing import Annotated

import typer
import yaml

from lathe.cli.output import console, print_each, print_json, print_measurements, print_table, say
from lathe.cli.session import AsJson, JobId, connect
from optcore.report.numbers import format_bytes


def download(
    job_id: JobId,
    out: Annotated[Path, typer.Option(help="Folder to write to; made when absent.")],
    as_json: AsJson = False,
) -> None:
    """Fetch a job's files, checked by SHA-256. Run again after an interruption, it goes on where it was."""
    with connect() as client:
        paths = client.artifacts.download(job_id, out, progress=not as_json)
    if as_json:
        for path in paths:
            print_json({"path": str(path), "bytes": path.stat().st_size})
    else:
        say(f"{len(paths)} files in {out}")


def artifacts(job_id: JobId, as_json: AsJson = False) -> None:
    """List a job's files with their sizes and SHA-256."""
    with connect() as client:
        found = list(client.artifacts.list(job_id))
    if as_json:
        print_each(found)
    else:
        print_table(("file", "size", "sha256"), [(item.path, format_bytes(item.bytes), item.sha256) for item in found])


def report(job_id: JobId, as_json: AsJson = False) -> None:
    """Print the measured before and after of a job that succeeded; with --json, all that was measured."""
    with connect() as client:
        document = client.jobs.report(job_id)
    if as_json:
        print_json(document)
    else:
        print_measurements(document)


def recipe(job_id: JobId, as_json: AsJson = False) -> None:
    """Print a job's recipe as YAML, with commits pinned once they are known."""
    with connect() as client:
        text = client.jobs.recipe(job_id)
    if as_json:
        print_json(yaml.safe_load(text))
    else:
        console.out(text.rstrip("\n"), highlight=False)
