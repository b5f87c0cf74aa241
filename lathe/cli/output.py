"""Where words go: tables and values to standard output, the rest to standard error."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.text import Text

from lathe.display.grid import Grid
from lathe.display.screen import errors
from lathe.report import Report
from optcore.frozen import canonical_json
from optcore.report.text import printable

__all__ = [
    "console",
    "errors",
    "money",
    "print_each",
    "print_json",
    "print_measurements",
    "print_table",
    "printable_lines",
    "say",
    "tell_deleted",
]

console = Console()


def printable_lines(text: str) -> Text:
    """Several lines from elsewhere."""
    return Text("\n".join(printable(line) for line in text.splitlines()))


def print_json(value: BaseModel | Mapping[str, Any]) -> None:
    """One JSON object on one line, for programs."""
    text = value.model_dump_json() if isinstance(value, BaseModel) else canonical_json(dict(value))
    console.out(text, highlight=False)


def print_each(values: Iterable[BaseModel]) -> None:
    """One JSON object a line."""
    for value in values:
        print_json(value)


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]], numbers: Iterable[int] = ()) -> None:
    """Plain columns; what does not fit is folded, never cut. `numbers` are flush right."""
    console.print(Grid(header, list(rows), tuple(numbers)))


def say(text: str) -> None:
    """A remark for people."""
    errors.print(printable_lines(text), soft_wrap=True)


def money(amount: float | None, currency: str | None) -> str:
    """A sum; nothing for one that is not known."""
    return "" if amount is None else f"{amount:,.2f} {currency or ''}".rstrip()


def tell_deleted(name: str, as_json: bool) -> None:
    """What there is to say of a thing that is gone."""
    if as_json:
        print_json({"id": name, "deleted": True})


def print_measurements(report: Mapping[str, Any]) -> None:
    """The before/after table of a report, and that of the engines."""
    read = Report(report)
    console.print(read)
    if read.unread:
        say(f"what this version cannot read was left out: {read.unread} rows")
