"""Progress as a callback: what hears a job's events, or a download's bytes, and shows them."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lathe.display.cells import cell
from lathe.display.screen import errors, is_live, screen
from lathe.display.stages import StagesView
from lathe.display.transfer import TransferView
from lathe.models import Artifact, JobEvent

OnEvent = Callable[[JobEvent], None]
OnBytes = Callable[[Artifact, int], None]
Hear = Callable[[str, Mapping[str, Any], float], None]


@contextmanager
def stages_shown() -> Iterator[Hear]:
    """What is told the kind, the data and the time of events: a live table, or a line for each that matters."""
    view, live = StagesView(), is_live()
    with screen(view) as changed:

        def hear(kind: str, data: Mapping[str, Any], at: float) -> None:
            said = view.feed(kind, data, at)
            changed()
            if said and not live:
                errors.print(cell(said), soft_wrap=True)

        yield hear


@contextmanager
def events_shown(progress: bool, on_event: OnEvent | None = None) -> Iterator[OnEvent | None]:
    """What a waiting client tells a job's events to: the screen, the caller, both, or nobody."""
    if not progress:
        yield on_event
        return
    with stages_shown() as hear:

        def tell(event: JobEvent) -> None:
            hear(event.type, event.data, event.at.timestamp())
            if on_event:
                on_event(event)

        yield tell


@contextmanager
def bytes_shown(artifacts: Iterable[Artifact], progress: bool, on_progress: OnBytes | None = None) -> Iterator[OnBytes]:
    """What a download tells the bytes of a file that are here to."""
    if not (progress and is_live()):
        yield on_progress or _quiet
        return
    view = TransferView(tuple(artifacts), time.monotonic)
    with screen(view) as changed:

        def tell(artifact: Artifact, received_bytes: int) -> None:
            view.feed(artifact, received_bytes)
            changed()
            if on_progress:
                on_progress(artifact, received_bytes)

        yield tell


def _quiet(artifact: Artifact, received_bytes: int) -> None:
    return None
