"""Commands that decide between recipes: what a job would take, and how jobs that ran compare."""

from collections.abc import Sequence

import typer

from lathe.cli.group import FAILED
from lathe.cli.output import money, print_json, print_table, say
from lathe.cli.recipe_file import ModelName, RecipePath, read_recipe
from lathe.cli.session import AsJson, JobIds, connect
from lathe.comparison_models import ComparedMeasurement, Comparison
from lathe.display.stages import about
from lathe.estimate_models import Estimate
from optcore.estimate.document import StageEstimate
from optcore.frozen import canonical_json
from optcore.report.numbers import format_bytes, format_number, format_value


def estimate(recipe: RecipePath, model: ModelName = None, as_json: AsJson = False) -> None:
    """Say what a recipe would take, before anything is run, and which workers it fits on.

    Exit with 1 when it could not be run.
    """
    loaded = read_recipe(recipe, model)
    with connect() as client:
        found = client.jobs.estimate(loaded)
    if as_json:
        print_json(found)
    else:
        _tell_estimate(found)
    if not found.allowed_to_proceed:
        raise typer.Exit(FAILED)


def compare(job_ids: JobIds, as_json: AsJson = False) -> None:
    """Put jobs side by side: what was asked, what came out, and which of them no other one beats."""
    with connect() as client:
        found = client.compare(job_ids)
    if as_json:
        print_json(found)
    else:
        _tell_comparison(found)


def _tell_estimate(found: Estimate) -> None:
    if found.stages:
        whole = (
            "in all",
            about(found.seconds),
            f"{about(found.seconds_low)} to {about(found.seconds_high)}",
            *map(format_bytes, (found.host_memory_bytes, found.gpu_memory_bytes, found.disk_bytes)),
        )
        header = ("stage", "time", "between", "memory", "GPU memory", "disk")
        print_table(header, [*map(_stage_row, found.stages), whole], range(1, 6))
    for result in found.sizes:
        before = f" of {format_bytes(found.source_bytes)}" if found.source_bytes else ""
        size = format_bytes(result.least_bytes)
        if result.most_bytes > result.least_bytes:
            size += f" to {format_bytes(result.most_bytes)}, by candidate,"
        say(f"result {result.result or 'main'}: {size}{before} in {result.format}")
    if found.cost is not None:
        likely, low, high = (money(each, found.currency) for each in (found.cost, found.cost_low, found.cost_high))
        say(f"cost: {likely} ({low} to {high})")
    elif found.stages:
        kind = found.machine.gpu_kind or found.machine.device
        say(f"cost: no price is set for {kind}; LATHE_PRICES of the service says what an hour costs")
    if found.workers:
        fits = [
            (
                *(each.host, "fits" if each.fits else "; ".join(each.reasons)),
                *(about(each.seconds), money(each.cost, found.currency)),
            )
            for each in found.workers
        ]
        print_table(("worker", "", "time", "cost"), fits)
    for problem in found.problems:
        say(f"{'error' if problem.fatal else 'warning'}: {problem.reason}")
        for label, value in (("field", problem.pointer), ("remedy", problem.remedy)):
            if value:
                say(f"{label}: {value}")
    say(f"learned from {found.learned_from} finished stages" if found.learned_from else "by formulas alone")


def _stage_row(stage: StageEstimate) -> tuple[str, ...]:
    between = f"{about(stage.seconds_low)} to {about(stage.seconds_high)}"
    sizes = map(format_bytes, (stage.host_memory_bytes, stage.gpu_memory_bytes, stage.disk_bytes))
    return stage.stage, about(stage.seconds), between, *sizes


def _tell_comparison(found: Comparison) -> None:
    jobs = [
        (
            *(job.id, job.status, job.name or job.model, job.summary),
            "on the front" if job.on_front else f"beaten by {', '.join(job.dominated_by)}" if job.dominated_by else "",
        )
        for job in found.jobs
    ]
    print_table(("job", "status", "model", "what it does", ""), jobs)
    ids = [job.id for job in found.jobs]
    if found.differences:
        rows = [(each.pointer, *map(_written, each.values)) for each in found.differences]
        print_table(("recipe", *ids), rows)
    if found.measurements:
        print_table(("", "before", *ids), list(map(_measured_row, found.measurements)), range(1, 2 + len(ids)))
    for notice in found.notices:
        say(f"note: {notice}")


def _measured_row(row: ComparedMeasurement) -> tuple[str, ...]:
    """The best result is marked; sources that differ between the jobs are all written."""
    results = [
        f"{format_value(value, row.unit)}{' *' if index == row.best else ''}" for index, value in enumerate(row.results)
    ]
    return row.title, _sources(row.sources, row.unit), *results


def _sources(values: Sequence[float | None], unit: str) -> str:
    return " / ".join(dict.fromkeys(format_value(value, unit) for value in values))


def _written(value: object) -> str:
    if isinstance(value, float):
        return format_number(value)
    return value if isinstance(value, str) else "" if value is None else canonical_json(value)
