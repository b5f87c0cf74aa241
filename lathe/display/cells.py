"""What a cell of a table shows: words from elsewhere, made harmless, and how far something is."""

from dataclasses import dataclass
from html import escape

from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.text import Text

from optcore.report.text import printable

COLOURS = {
    "succeeded": "green",
    "cached": "green",
    "published": "green",
    "idle": "green",
    "better": "green",
    "running": "cyan",
    "uploading": "cyan",
    "busy": "cyan",
    "failed": "red",
    "worse": "red",
    "quarantined": "red",
    "cancelling": "yellow",
    "cancelled": "yellow",
}


@dataclass(frozen=True)
class Bar:
    """How far something is."""

    done: float
    total: float


def cell(value: object) -> Text:
    """No control characters, no markup; a known status gets its colour."""
    text = printable(str(value))
    return Text(text, style=COLOURS.get(text, ""))


def drawn(value: object) -> RenderableType:
    """A cell for a terminal."""
    return ProgressBar(total=value.total, completed=value.done, width=24) if isinstance(value, Bar) else cell(value)


def html(value: object) -> str:
    """A cell for a notebook."""
    if isinstance(value, Bar):
        return f'<progress max="{value.total:g}" value="{value.done:g}"></progress>'
    text = printable(str(value))
    colour = COLOURS.get(text)
    return f'<span style="color:{colour}">{escape(text)}</span>' if colour else escape(text)
