"""What can be added to a list, or where nothing is yet: one button each, with the reason where it cannot."""

import inspect
from typing import Any

from api.dashboard.recipe_form.control import Adder
from api.dashboard.recipe_form.fitting import variant_label
from api.dashboard.recipe_form.rules import Rules
from api.dashboard.recipe_form.schema import NAME, Schema, choices, named, title_of, variants
from api.dashboard.recipe_form.starters import starter
from optcore.engines import ENGINES
from optcore.mixes import MIXES
from optcore.mixes import title_of as scheme_title
from optcore.schemes import PRESETS


def adders_for(rules: Rules, pointer: str, schema: Schema, items: list[Any] | None) -> tuple[Adder, ...]:
    """The buttons of a list (with what it holds), or of something that may be there or not (None)."""
    if items is None:
        return (Adder(f"set {pointer}", "Add"),)
    if choices(schema) is not None:
        return (Adder(f"add {pointer} 0", "Add"),)
    made = [_adder(rules, pointer, number, each, items) for number, each in enumerate(variants(schema))]
    return tuple(sorted(made, key=lambda each: bool(each.reason)))


def _adder(rules: Rules, pointer: str, number: int, schema: Schema, items: list[Any]) -> Adder:
    label = title_of(schema[NAME]) if named(schema) and NAME in schema else variant_label(schema) or "Add"
    index, reason = place_for(rules, pointer, starter(schema), len(items))
    return Adder(
        do=f"add {pointer} {number}",
        label=label,
        help=inspect.cleandoc(schema.get("description", "")),
        reason=reason,
        note=f"goes before entry {index + 1}" if not reason and index < len(items) else "",
    )


def place_for(rules: Rules, pointer: str, item: Any, length: int) -> tuple[int, str]:
    """The last place in a list that the rules let an item have; and where none does, why it cannot be the last."""
    first_reason = ""
    for index in range(length, -1, -1):
        reason = rules.against_adding(pointer, item, index)
        if not reason:
            return index, ""
        first_reason = first_reason or reason
    return length, first_reason


def option_label(closed: list[Any], value: Any) -> str:
    """What a value of a closed list is called: number formats and engines have names that people know."""
    if value is None:
        return "none"
    known = [each for each in closed if each in PRESETS or each in MIXES]
    if len(known) * 2 > len(closed) and value in known:
        return f"{value} · {scheme_title(value)}"
    if value in ENGINES and all(each in ENGINES for each in closed if each is not None):
        return ENGINES[value]
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
