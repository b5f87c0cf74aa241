"""The measured before and after of a job, as the service sends it and as people read it."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar, overload

from pydantic import ValidationError
from rich.console import Group
from rich.table import Table

from lathe.display.cells import html
from lathe.display.grid import Grid
from optcore.report import EngineRun, Measurement
from optcore.report.engines import engine_rows
from optcore.report.numbers import format_change, format_value, verdict

Row = TypeVar("Row", Measurement, EngineRun)


class Measurements(Sequence[Measurement]):
    """The rows of the before/after table. A notebook, `print` and rich show them as one."""

    def __init__(self, rows: Sequence[Measurement]) -> None:
        self._rows = tuple(rows)

    @overload
    def __getitem__(self, which: int | str) -> Measurement: ...
    @overload
    def __getitem__(self, which: slice) -> "Measurements": ...
    def __getitem__(self, which: int | str | slice) -> "Measurement | Measurements":
        """A row by its place or by the measurement's name, such as `mean_kl`; raises `KeyError` for an unknown one."""
        if isinstance(which, slice):
            return Measurements(self._rows[which])
        if isinstance(which, int):
            return self._rows[which]
        for row in self._rows:
            if row.name == which:
                return row
        raise KeyError(f"no measurement {which!r}; there are {', '.join(row.name for row in self._rows)}")

    def __len__(self) -> int:
        return len(self._rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Measurements) and self._rows == other._rows

    def __hash__(self) -> int:
        return hash(self._rows)

    def grid(self) -> Grid:
        """Before, after, change and a word for whether it is a good one."""
        with_baseline = any(row.baseline is not None for row in self._rows)
        names = ["before", *(["max scales"] if with_baseline else []), "after", "change"]
        return Grid(("", *names, ""), [_cells(row, with_baseline) for row in self._rows], range(1, 1 + len(names)))

    def __rich__(self) -> Table:
        return self.grid().__rich__()

    def __str__(self) -> str:
        return str(self.grid())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.grid()._repr_html_()


class Report(dict[str, Any]):
    """The document as the service sent it, which may be newer; and the parts that this package knows, typed."""

    @cached_property
    def measurements(self) -> Measurements:
        """The before/after table."""
        return Measurements(tuple(_rows(self, "measurements", Measurement)))

    @cached_property
    def engine_runs(self) -> tuple[EngineRun, ...]:
        """Source and results in the engines that serve them."""
        return tuple(_rows(self, "engine_runs", EngineRun))

    @property
    def unread(self) -> int:
        """Rows of either that a newer engine wrote in a way that this package cannot read."""
        sent = len(self.get("measurements", ())) + len(self.get("engine_runs", ()))
        return sent - len(self.measurements) - len(self.engine_runs)

    def grids(self) -> tuple[Grid, ...]:
        """The tables that there is something in."""
        rows = engine_rows(self.engine_runs)
        in_engines = Grid(rows[0], rows[1:], range(1, len(rows[0]))) if rows else None
        before_and_after = self.measurements.grid() if self.measurements else None
        return tuple(grid for grid in (before_and_after, in_engines) if grid)

    def __rich__(self) -> Group:
        return Group(*[part for grid in self.grids() for part in (grid, "")][:-1])

    def _repr_html_(self) -> str:
        title = f"{self.get('model', '')} → {self.get('scheme', '')}"
        return f"<p>{html(title)}</p>" + "".join(grid._repr_html_() for grid in self.grids())


def _cells(row: Measurement, with_baseline: bool) -> tuple[str, ...]:
    baseline = [format_value(row.baseline, row.unit)] if with_baseline else []
    values = [format_value(row.source, row.unit), *baseline, format_value(row.result, row.unit)]
    return row.title, *values, format_change(row), verdict(row) or ""


def _rows(report: Mapping[str, Any], name: str, kind: type[Row]) -> Iterator[Row]:
    for row in report.get(name, ()):
        known = {field: value for field, value in row.items() if field in kind.model_fields}
        try:
            yield kind.model_validate(known)
        except ValidationError:  # one that a newer engine writes differently; the others still say something
            continue
