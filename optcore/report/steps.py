"""The table of a chain that was measured after each of its entries."""

from optcore.report.model import Report
from optcore.report.numbers import NOTHING, format_bytes, format_number, format_value


def step_rows(report: Report) -> list[list[str]]:
    """Header and rows as text: what was done, parameters, bytes, then everything that was measured of a step.

    Empty for a chain that was not measured on the way.
    """
    if not report.steps:
        return []
    measured = [row for row in report.measurements if any(row.name in step.values for step in report.steps[1:-1])]
    rows = [["After", "Parameters", "Weights", *(row.title for row in measured)]]
    for step in report.steps:
        values = [(step.values.get(row.name), row.unit) for row in measured]
        cells = [NOTHING if value is None else format_value(value, unit) for value, unit in values]
        what = f"(rival: {step.what})" if step.rival else step.what
        rows.append([what, format_number(step.parameters), format_bytes(step.weight_bytes), *cells])
    return rows
