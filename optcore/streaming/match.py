"""Module names against the patterns of a recipe."""

import re
from collections.abc import Iterable


def is_matched(name: str, patterns: Iterable[str]) -> bool:
    """Whether a module's name equals a pattern, or matches one that starts with `re:` (from its beginning)."""
    return any(
        re.match(pattern.removeprefix("re:"), name) if pattern.startswith("re:") else pattern == name
        for pattern in patterns
    )
