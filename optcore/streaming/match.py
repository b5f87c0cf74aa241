"""Module names against the patterns of a recipe."""

import re
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from optcore.errors import RecipeError

LIMIT_seconds = 60.0


def is_matched(name: str, patterns: Iterable[str]) -> bool:
    """Whether a module's name equals a pattern, or matches one that starts with `re:` (from its beginning)."""
    return any(
        re.match(pattern.removeprefix("re:"), name) if pattern.startswith("re:") else pattern == name
        for pattern in patterns
    )


def unmatched(patterns: Iterable[str], names: Iterable[str]) -> list[str]:
    """The patterns that match none of the names, in their order: most often a spelling mistake."""
    known = list(names)
    return [pattern for pattern in patterns if not any(is_matched(name, [pattern]) for name in known)]


@contextmanager
def time_limit(seconds: float = LIMIT_seconds) -> Iterator[None]:
    """Raises `RecipeError` when matching takes longer: an expression such as `(a+)+$` may take years.

    A signal does it, which the matcher of Python looks for; they only come to the main thread, so there is no limit
    elsewhere.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, _too_long)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)  # of whoever waited for one before us, late by our time at most


def _too_long(_: int, __: FrameType | None) -> None:
    raise RecipeError(
        "the patterns of `ignore` and `overrides` take too long to match",
        remedy="write them without repetitions inside of repetitions, such as `(a+)+`",
        field="/chain",
    )
