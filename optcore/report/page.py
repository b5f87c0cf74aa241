"""The report as one HTML file that loads nothing from anywhere."""

from functools import cache

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from optcore.report import plots
from optcore.report.engines import engine_note, engine_rows
from optcore.report.expected import expected_rows
from optcore.report.front_rows import front_note, front_rows, goal_lines
from optcore.report.model import Report
from optcore.report.numbers import format_bound, format_change, format_trial, format_value, verdict
from optcore.report.scatter import HEIGHT as SCATTER_HEIGHT
from optcore.report.scatter import scatter
from optcore.report.steps import step_rows


def render_page(report: Report) -> str:
    """Self-contained HTML with inline SVG plots, for light and dark screens.

    Every text is escaped, and the page's own policy forbids scripts and requests, whatever a report contains.
    """
    layers = plots.layer_curve(report.layer_errors)
    series = [curve for curve in map(plots.series_curve, report.series) if curve]
    compared = [row for row in report.measurements if row.result is not None]
    return _template().render(
        report=report,
        steps=step_rows(report),
        race=front_rows(report.front) if report.front else [],
        scatter=scatter(report.front) if report.front else None,
        engines=engine_rows(report.engine_runs),
        engine_note=engine_note(report.engine_runs),
        recipe=yaml.safe_dump(report.recipe, sort_keys=False, allow_unicode=True),
        with_baseline=any(row.baseline is not None for row in report.measurements),
        bars=[(row, plots.measurement_bars(row)) for row in compared],
        stages=plots.stage_bars(report.stages),
        expected=expected_rows(report),
        tried=plots.trial_bars(report.trials),
        curves=[*([layers] if layers else []), *series],
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("optcore.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(plots=plots, SCATTER_HEIGHT=SCATTER_HEIGHT, front_note=front_note, goal_lines=goal_lines)
    environment.filters.update(value=format_value, change=format_change, verdict=verdict)
    environment.filters.update(trial=format_trial, bound=format_bound)
    return environment.get_template("page.html")
