"""Where progress is shown: a live block on a terminal, a cell's output in a notebook, nowhere else."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table

errors = Console(stderr=True)
NOTEBOOK_seconds = 0.25
"""Between two drawings in a notebook: each is a message to the browser, and is kept in the file."""


class View(Protocol):
    """Something that changes while it is shown."""

    def __rich__(self) -> Table: ...

    def _repr_html_(self) -> str: ...


def is_live() -> bool:
    """Whether somebody can see something change."""
    return errors.is_terminal or errors.is_jupyter


@contextmanager
def screen(view: View) -> Iterator[Callable[[], None]]:
    """Shows the view while the block runs; what it yields is called after a change."""
    if errors.is_jupyter:
        panel = _Panel(view)
        try:
            yield panel.changed
        finally:
            panel.draw()
    elif errors.is_terminal:
        with Live(get_renderable=view.__rich__, console=errors, refresh_per_second=8):
            yield _nothing
    else:
        yield _nothing


def show(value: Any) -> None:
    """A table, once: displayed in a notebook, printed elsewhere."""
    if errors.is_jupyter:
        import_module("IPython.display").display(value)
    else:
        Console().print(value)


class _Panel:
    """One output of a cell that is drawn over. rich's own `Live` asks for ipywidgets, which many notebooks lack."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._handle = import_module("IPython.display").display(view, display_id=True)
        self._drawn = time.monotonic()

    def changed(self) -> None:
        if time.monotonic() - self._drawn >= NOTEBOOK_seconds:
            self.draw()

    def draw(self) -> None:
        self._handle.update(self._view)
        self._drawn = time.monotonic()


def _nothing() -> None:
    return None
