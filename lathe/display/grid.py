"""A table that a terminal, a notebook and a plain `print` show alike."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from io import StringIO

from rich.console import Console
from rich.table import Table

from lathe.display.cells import drawn, html

WIDTH = 160
"""Columns of a table that goes into a string."""


@dataclass(frozen=True)
class Grid:
    """Plain columns; what does not fit is folded, never cut."""

    header: Sequence[str]
    """Empty for none."""
    rows: Sequence[Sequence[object]]
    numbers: Collection[int] = ()
    """Columns that are flush right."""

    def __rich__(self) -> Table:
        table = Table(*self.header, box=None, pad_edge=False, header_style="bold", show_header=bool(self.header))
        for row in self.rows:
            table.add_row(*map(drawn, row))
        for index, column in enumerate(table.columns):
            column.overflow = "fold"
            column.justify = "right" if index in self.numbers else "left"
        if table.columns:
            table.columns[0].no_wrap = True  # what people copy: an id, a name
        return table

    def __str__(self) -> str:
        console = Console(file=StringIO(), width=WIDTH, force_jupyter=False)
        with console.capture() as captured:
            console.print(self)
        return "\n".join(line.rstrip() for line in captured.get().splitlines())

    def _repr_html_(self) -> str:
        head = "".join(f"<th{self._side(index)}>{html(name)}</th>" for index, name in enumerate(self.header))
        body = "".join(f"<tr>{self._cells(row)}</tr>" for row in self.rows)
        return f"<table>{f'<thead><tr>{head}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>"

    def _cells(self, row: Sequence[object]) -> str:
        return "".join(f"<td{self._side(index)}>{html(value)}</td>" for index, value in enumerate(row))

    def _side(self, index: int) -> str:
        return f' style="text-align:{"right" if index in self.numbers else "left"}"'
