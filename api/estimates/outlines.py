"""Outlines of the models that a recipe names: read where they lie, or asked of the Hub with the project's own token."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from copy import copy
from pathlib import Path

from optcore.errors import OptError
from optcore.estimate.facts import ModelFacts, from_folder, from_headers
from optcore.references import ModelRef
from optcore.sources.local import require_folder
from optcore.sources.shapes import remote_shapes

KEPT = 32
FRESH_seconds = 300.0
"""A form asks at every change; a branch seldom moves meanwhile."""
FAILED_seconds = 10.0
"""Or what was refused is asked for at every change."""
PATIENCE_seconds = 15.0
"""With the Hub, for all of a model: somebody waits, and can ask again."""

Key = tuple[str, ...]


class Outlines:
    """Remembers what was asked of the Hub for a while, each project for itself: what one may read another may not."""

    def __init__(self) -> None:
        self._known: OrderedDict[Key, tuple[float, ModelFacts | OptError]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, project_id: str, model: ModelRef, place: str, token: Callable[[], str | None]) -> ModelFacts:
        """The outline of a model whose path, if any, was admitted. Raises what `remote_shapes` does."""
        if model.id is None:
            folder = Path(str(model.path))
            require_folder(folder, f"{place}/path")
            return from_folder(folder)
        key = (project_id, model.id, model.revision)
        if isinstance(found := self._remembered(key), ModelFacts):
            return found
        own = token()
        failing = (*key, place, own or "")  # with another token there may be another answer
        if isinstance(failed := self._remembered(failing), OptError):
            raise copy(failed)
        try:
            shapes = remote_shapes(model, place, own, PATIENCE_seconds)
            facts = from_headers(shapes.config, shapes.tensors)
        except OptError as error:
            self._remember(failing, copy(error))  # without the frames, which hold all headers
            raise
        self._remember(key, facts)
        return facts

    def _remembered(self, key: Key) -> ModelFacts | OptError | None:
        with self._lock:
            at, found = self._known.get(key, (0.0, None))
            fresh = FAILED_seconds if isinstance(found, OptError) else FRESH_seconds
            return found if time.monotonic() - at < fresh else None

    def _remember(self, key: Key, found: ModelFacts | OptError) -> None:
        with self._lock:
            self._known[key] = (time.monotonic(), found)
            self._known.move_to_end(key)
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
