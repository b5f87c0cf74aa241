"""How each kind of control spells a value, and which values it can: one that it cannot is edited as YAML."""

from typing import Any

from api.dashboard.recipe_form.control import Kind
from api.dashboard.recipe_form.posted import read_number
from api.dashboard.recipe_form.schema import NAME, Schema, choices, named, resolved, title_of, variants

MOST_ITEMS = 64
"""Of a list that is shown item by item; of more, the schema must say so, and then it is YAML."""


def kind_of(schema: Schema) -> Kind:
    """The control for a field, by what the schema lets it be."""
    if choices(schema) is not None:
        return "pick"
    options = variants(schema)
    if len(options) > 1:
        plain = all(each.get("type") in ("integer", "number", "string") for each in options)
        return "number" if plain and any(each.get("type") != "string" for each in options) else "union"
    return _kind_of_one(options[0])


def _kind_of_one(schema: Schema) -> Kind:
    plain: dict[str, Kind] = {"boolean": "check", "integer": "number", "number": "number", "string": "text"}
    kind = schema.get("type", "")
    if kind == "array":
        return _kind_of_list(schema)
    if kind == "object":
        if "properties" in schema:
            return "group"
        return "pairs" if schema.get("additionalProperties", {}).get("type") == "string" else "value"
    return plain.get(kind, "value")


def _kind_of_list(schema: Schema) -> Kind:
    if "prefixItems" in schema:
        return "tuple"
    items = kind_of(resolved(schema.get("items", {})))
    lists: dict[Kind, Kind] = {"text": "lines", "number": "numbers"}
    return lists.get(items, "list")


def can_spell(kind: Kind, schema: Schema, value: Any) -> bool:
    """Whether a control of this kind gives back the value that it shows."""
    if kind == "number":
        return isinstance(value, int | float | str) and not isinstance(value, bool) and _reads_back(value)
    if kind == "text":
        return isinstance(value, str) and bool(value) and "\r" not in value
    if kind == "pick":
        return value is None or isinstance(value, str | int | float)
    if kind == "check":
        return isinstance(value, bool)
    if kind in ("group", "pairs"):
        plain = isinstance(value, dict) and all(isinstance(key, str) for key in value)
        return plain and (kind == "group" or all(_is_pair(key, each) for key, each in value.items()))
    if kind == "union":
        return True
    return isinstance(value, list) and _can_list(kind, schema, value)


def _reads_back(value: Any) -> bool:
    return read_number(spelt("number", value)) in (value,)


def _is_pair(key: str, value: Any) -> bool:
    whole = f"{key}:{value}"
    return (
        isinstance(value, str)
        and ":" not in key
        and key == key.strip() != ""
        and len(whole.splitlines()) == 1
        and (value == value.strip())
    )


def _can_list(kind: Kind, schema: Schema, value: list[Any]) -> bool:
    if kind == "lines":
        return bool(value) and all(isinstance(each, str) and each.strip() and _is_one_line(each) for each in value)
    if kind == "numbers":
        return bool(value) and all(can_spell("number", schema, each) and _is_one_word(each) for each in value)
    if kind == "tuple":
        return len(value) == len(schema["prefixItems"])
    most: int = schema.get("maxItems", MOST_ITEMS)
    return len(value) <= min(most, MOST_ITEMS)


def _is_one_line(text: str) -> bool:
    return "\n" not in text and "\r" not in text


def _is_one_word(value: Any) -> bool:
    return len(str(value).replace(",", " ").split()) == 1


def spelt(kind: Kind, value: Any) -> str:
    """A value as the control's text."""
    if kind == "lines":
        return "\n".join(value)
    if kind == "numbers":
        return ", ".join(map(str, value))
    if kind == "pairs":
        return "\n".join(f"{key}: {each}" for key, each in value.items())
    return str(value)


def hint_of(schema: Schema) -> str:
    """The range of a number, in words."""
    found = next((each for each in variants(schema) if each.get("type") in ("integer", "number")), None)
    if found is None:
        return ""
    low, high = found.get("minimum"), found.get("maximum")
    over, under = found.get("exclusiveMinimum"), found.get("exclusiveMaximum")
    first = f"from {low:,}" if low is not None else f"above {over:,}" if over is not None else ""
    last = f"to {high:,}" if high is not None else f"below {under:,}" if under is not None else ""
    return " ".join(filter(None, (first, last)))


def default_words(schema: Schema) -> str:
    """What holds when nothing is given, in words; empty where there is no such value."""
    value = schema.get("default")
    if value is None or value in ([], {}, ""):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_item_words(each) for each in value)
    return "" if isinstance(value, dict) else str(value)


def _item_words(value: Any) -> str:
    if isinstance(value, dict):
        return str(next((each for each in value.values() if isinstance(each, str)), "…"))
    return str(value)


def variant_label(schema: Schema) -> str:
    """What one of several kinds of value is called."""
    closed = choices(schema)
    if closed is not None:
        return " or ".join(map(str, closed))
    tag = named(schema)
    kinds = {"array": "a list", "integer": "a number", "number": "a number", "string": "a text"}
    return tag[1] if tag else kinds.get(schema.get("type", ""), title_of(schema[NAME]) if NAME in schema else "")
