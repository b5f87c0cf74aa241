"""Commands about what a job said and measured: events, logs, metrics."""

from typing import Annotated

import typer

from lathe.cli.output import console, print_each, print_json, print_table, printable_lines
from lathe.cli.session import AsJson, JobId, connect
from lathe.display.stages import StagesView
from optcore.report.numbers import format_number

Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")]


def events(
    job_id: JobId,
    follow: Follow = False,
    after: Annotated[int, typer.Option(min=0, help="Only events above this number.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Print a job's history, a line for each event that matters; with --json, every event."""
    view = StagesView()
    with connect() as client:
        for event in client.jobs.events(job_id, after=after, stream=follow):
            if as_json:
                print_json(event)
            elif said := view.feed(event.type, event.data, event.at.timestamp()) or _of_the_job(event.type):
                console.print(printable_lines(f"{event.at:%Y-%m-%d %H:%M:%S}  {said}"), soft_wrap=True)


def logs(job_id: JobId, follow: Follow = False, as_json: AsJson = False) -> None:
    """Print what the engine wrote on standard error."""
    with connect() as client:
        for chunk in client.jobs.logs(job_id, follow=follow):
            if as_json:
                print_json(chunk)
            else:
                console.print(printable_lines(chunk.text), soft_wrap=True)


def metrics(
    job_id: JobId,
    stage: Annotated[str | None, typer.Option(help="Only of this stage.")] = None,
    name: Annotated[str | None, typer.Option(help="Only this one, such as `loss`.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print what was measured along the way: the first and the last value of each curve; with --json, the points."""
    with connect() as client:
        curves = client.jobs.metrics(job_id, stage=stage, name=name)
    if as_json:
        print_each(curves)
        return
    rows = [
        (curve.stage, curve.name, len(curve.last), *(format_number(value) for value in (curve.mean[0], curve.last[-1])))
        for curve in curves
        if curve.last
    ]
    print_table(("stage", "metric", "points", "first", "last"), rows, (2, 3, 4))


def _of_the_job(kind: str) -> str:
    return kind.removeprefix("job.") if kind.startswith("job.") else ""
