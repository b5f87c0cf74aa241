"""Where words go: tables and values to standard output, the rest to standard error."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from optcore.frozen import canonical_json
from optcore.report import EngineRun, Measurement
from optcore.report.engines import engine_rows
from optcore.report.numbers import format_change, format_value, verdict
from optcore.report.text import printable

Row = TypeVar("Row", Measurement, EngineRun)

console = Console()
errors = Console(stderr=True)

COLOURS = {
    "succeeded": "green",
    "cached": "green",
    "published": "green",
    "better": "green",
    "running": "cyan",
    "uploading": "cyan",
    "failed": "red",
    "worse": "red",
    "cancelling": "yellow",
    "cancelled": "yellow",
}


def cell(value: object) -> Text:
    """Words from elsewhere: no control characters, no markup; a known status gets its colour."""
    text = printable(str(value))
    return Text(text, style=COLOURS.get(text, ""))


def printable_lines(text: str) -> Text:
    """Several lines from elsewhere."""
    return Text("\n".join(printable(line) for line in text.splitlines()))


def print_json(value: BaseModel | Mapping[str, Any]) -> None:
    """One JSON object on one line, for programs."""
    text = value.model_dump_json() if isinstance(value, BaseModel) else canonical_json(dict(value))
    console.out(text, highlight=False)


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Plain columns; what does not fit is folded, never cut."""
    table = Table(*header, box=None, pad_edge=False, header_style="bold")
    for column in table.columns:
        column.overflow = "fold"
    table.columns[0].no_wrap = True  # what people copy: an id, a name
    for row in rows:
        table.add_row(*map(cell, row))
    console.print(table)


def print_measurements(report: Mapping[str, Any]) -> None:
    """The before/after table of a report, and that of the engines."""
    rows = list(_rows(report, "measurements", Measurement))
    if rows:
        _print_before_and_after(rows)
    if in_engines := engine_rows(list(_rows(report, "engine_runs", EngineRun))):
        console.print()
        print_table(in_engines[0], in_engines[1:])


def _print_before_and_after(rows: Sequence[Measurement]) -> None:
    with_baseline = any(row.baseline is not None for row in rows)
    table = Table("", box=None, pad_edge=False, header_style="bold")
    for name in ("before", *(["max scales"] if with_baseline else []), "after", "change"):
        table.add_column(name, justify="right")
    table.add_column("")
    for row in rows:
        baseline = [format_value(row.baseline, row.unit)] if with_baseline else []
        values = [format_value(row.source, row.unit), *baseline, format_value(row.result, row.unit)]
        table.add_row(*map(cell, (row.title, *values, format_change(row), verdict(row) or "")))
    console.print(table)


def _rows(report: Mapping[str, Any], name: str, kind: type[Row]) -> Iterable[Row]:
    for row in report.get(name, ()):
        known = {field: value for field, value in row.items() if field in kind.model_fields}
        try:
            yield kind.model_validate(known)
        except ValidationError:  # a row that a newer engine writes differently; the others still say something
            errors.print(Text(f"a measurement that this version cannot read was left out: {printable(str(row))[:120]}"))
