"""What a run looks like while it runs: a table of stages, fed by events of the engine or of a service."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from lathe.cli.output import cell, errors
from optcore.report.numbers import format_bytes, format_seconds

Pair = tuple[str, Mapping[str, Any]]


@dataclass
class StageLine:
    """One row."""

    name: str
    status: str = "pending"
    phase: str = ""
    done: int = 0
    total: int = 0
    seconds: float | None = None
    peak_memory_bytes: int | None = None


class RunView:
    """The state that events add up to. Events of a kind that it does not know change nothing."""

    def __init__(self) -> None:
        self._stages: dict[str, StageLine] = {}

    def feed(self, kind: str, data: Mapping[str, Any]) -> str:
        """Take one event; the line that says it in a log, empty when it is not worth one."""
        handler = getattr(self, f"_on_{kind.replace('.', '_')}", None)
        return str(handler(data)) if handler else ""

    def _on_run_planned(self, data: Mapping[str, Any]) -> str:
        names = [str(name) for name in data.get("stages", ())]
        self._stages = {name: self._stages.get(name, StageLine(name)) for name in names}
        return f"planned: {', '.join(names)}"

    def _on_stage_started(self, data: Mapping[str, Any]) -> str:
        line = self._line(data)
        line.status, line.phase, line.done, line.total = "running", "", 0, 0
        return f"{line.name}: started"

    def _on_progress(self, data: Mapping[str, Any]) -> str:
        line = self._line(data)
        began = line.phase != data.get("phase")
        line.status, line.phase = "running", str(data.get("phase", ""))
        line.done, line.total = int(data.get("done", 0)), int(data.get("total", 0))
        return f"{line.name}: {line.phase}" if began else ""

    def _on_stage_finished(self, data: Mapping[str, Any]) -> str:
        line = self._line(data)
        line.status, line.phase = ("cached" if data.get("cached") else "succeeded"), ""
        line.seconds, line.peak_memory_bytes = data.get("seconds"), data.get("peak_memory_bytes")
        return f"{line.name}: {line.status}{_cost(line)}"

    def _on_notice(self, data: Mapping[str, Any]) -> str:
        return f"note: {data.get('message', '')}"

    def _on_run_failed(self, data: Mapping[str, Any]) -> str:
        return self._interrupted("failed")

    def _on_job_failed(self, data: Mapping[str, Any]) -> str:
        return self._interrupted("failed")

    def _on_job_cancelled(self, data: Mapping[str, Any]) -> str:
        return self._interrupted("cancelled")

    def _on_job_queued(self, data: Mapping[str, Any]) -> str:
        return "queued"

    def _interrupted(self, status: str) -> str:
        for line in self._stages.values():
            if line.status == "running":
                line.status, line.phase = status, ""
        return status

    def _line(self, data: Mapping[str, Any]) -> StageLine:
        name = str(data.get("stage", ""))
        return self._stages.setdefault(name, StageLine(name))

    def __rich__(self) -> Table:
        table = Table(box=None, pad_edge=False, show_header=False)
        for line in self._stages.values():
            bar = ProgressBar(total=line.total, completed=line.done, width=24) if line.phase and line.total else ""
            table.add_row(cell(line.name), cell(line.status), cell(line.phase), bar, cell(_cost(line).strip(" ()")))
        return table


def watch(pairs: Iterable[Pair]) -> None:
    """Show events as they come: a live table on a terminal, a line for each that matters elsewhere."""
    view = RunView()
    with _screen(view) as live:
        for kind, data in pairs:
            said = view.feed(kind, data)
            if live:
                live.update(view)
            elif said:
                errors.print(cell(said), soft_wrap=True)


@contextmanager
def _screen(view: RunView) -> Iterator[Live | None]:
    if not errors.is_terminal:
        yield None
        return
    with Live(view, console=errors, refresh_per_second=8) as live:
        yield live


def _cost(line: StageLine) -> str:
    if line.seconds is None:
        return ""
    memory = f", {format_bytes(line.peak_memory_bytes)} peak" if line.peak_memory_bytes else ""
    return f" ({format_seconds(line.seconds)}{memory})"
