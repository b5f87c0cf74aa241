"""Outlines of the models that a recipe names: read where they lie, or asked of the Hub with the project's own token."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from optcore.estimate.facts import ModelFacts, from_folder, from_headers
from optcore.references import ModelRef
from optcore.sources.local import require_folder
from optcore.sources.shapes import remote_shapes

KEPT = 32
FRESH_seconds = 300.0
"""A form asks at every change; a branch seldom moves meanwhile."""

Key = tuple[str, str, str]


class Outlines:
    """Remembers what was asked of the Hub for a while, each project for itself: what one may read another may not."""

    def __init__(self) -> None:
        self._known: OrderedDict[Key, tuple[float, ModelFacts]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, project_id: str, model: ModelRef, place: str, token: Callable[[], str | None]) -> ModelFacts:
        """The outline of a model whose path, if any, was admitted. Raises what `remote_shapes` does."""
        if model.id is None:
            folder = Path(str(model.path))
            require_folder(folder, f"{place}/path")
            return from_folder(folder)
        key = (project_id, model.id, model.revision)
        found = self._remembered(key)
        if found is None:
            shapes = remote_shapes(model, place, token())
            found = from_headers(shapes.config, shapes.tensors)
            self._remember(key, found)
        return found

    def _remembered(self, key: Key) -> ModelFacts | None:
        with self._lock:
            at, found = self._known.get(key, (0.0, None))
            return found if time.monotonic() - at < FRESH_seconds else None

    def _remember(self, key: Key, found: ModelFacts) -> None:
        with self._lock:
            self._known[key] = (time.monotonic(), found)
            self._known.move_to_end(key)
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
