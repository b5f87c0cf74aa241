"""Parts of a recipe by their place, a JSON Pointer: found and exchanged wherever they stand."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from optcore.frozen import Frozen

if TYPE_CHECKING:
    from optcore.techniques import Technique

Change = Callable[[Any, str], Any]
"""From what stands at a place, and its JSON Pointer, to what is to stand there; the same object to leave it alone."""
Value = TypeVar("Value")


def rewritten(value: Value, change: Change, pointer: str = "") -> Value:
    """The value with every part changed, from the outside in; what was changed is not looked into."""
    changed: Any = change(value, pointer)
    if changed is not value:
        return changed  # type: ignore[no-any-return]
    if isinstance(value, tuple):
        changed = tuple(rewritten(item, change, f"{pointer}/{place}") for place, item in enumerate(value))
    elif isinstance(value, Frozen):
        parts = {name: rewritten(part, change, f"{pointer}/{name}") for name, part in value}
        changed = value.model_copy(update=parts)
    return changed  # type: ignore[no-any-return]


def attempts(number: int, entry: "Technique") -> "Iterator[tuple[str, Technique]]":
    """Entry `number` of the chain, counted from 0, and what is tried when it fails, each with its JSON Pointer."""
    yield f"/chain/{number}", entry
    for place, technique in enumerate(entry.alternatives):
        yield f"/chain/{number}/fallback/{place}", technique
