"""Module names against the patterns of a recipe."""

import re
from collections.abc import Iterable


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
