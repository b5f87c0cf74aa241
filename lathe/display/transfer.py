"""What a download looks like: the file, the bytes, the speed and the time left."""

from collections.abc import Callable, Sequence

from rich.table import Table

from lathe.display.cells import Bar
from lathe.display.grid import Grid
from lathe.display.stages import about
from lathe.models import Artifact
from optcore.report.numbers import format_bytes


class TransferView:
    """Fed with the bytes of each file that are here."""

    def __init__(self, artifacts: Sequence[Artifact], clock: Callable[[], float]) -> None:
        self._total_bytes = sum(artifact.bytes for artifact in artifacts)
        self._files = len(artifacts)
        self._here: dict[str, int] = {}
        self._found_bytes = 0
        """They say nothing about the speed."""
        self._current = ""
        self._clock = clock
        self._began = clock()

    def feed(self, artifact: Artifact, received_bytes: int) -> None:
        """Take one report of a download."""
        if artifact.path not in self._here:  # the first report comes before any byte: these were here already
            self._found_bytes += received_bytes
        self._here[artifact.path] = received_bytes
        self._current = artifact.path

    def grid(self) -> Grid:
        """One row: all files together, and which one is on its way."""
        done = sum(tuple(self._here.values()))
        speed = (done - self._found_bytes) / max(self._clock() - self._began, 1e-3)
        left = about((self._total_bytes - done) / speed) if speed > 0 else ""
        words = (
            f"{format_bytes(done)} of {format_bytes(self._total_bytes)}",
            f"{format_bytes(speed)}/s" if speed > 0 else "",
            f"{left} left" if left and done < self._total_bytes else "",
            f"{len(self._here)}/{self._files} {self._current}",
        )
        return Grid((), [(Bar(done, self._total_bytes), *words)])

    def __rich__(self) -> Table:
        return self.grid().__rich__()

    def _repr_html_(self) -> str:
        return self.grid()._repr_html_()
