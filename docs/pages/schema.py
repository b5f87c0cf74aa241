"""JSON Schema as Markdown: the fields of an object as a table, types as words."""

import json
from typing import Any

from docs.pages.markdown import anchor, one_line, table

Schema = dict[str, Any]

_LIMITS = (
    ("minimum", "at least {}"),
    ("exclusiveMinimum", "above {}"),
    ("maximum", "at most {}"),
    ("exclusiveMaximum", "below {}"),
    ("minLength", "{} or more characters"),
    ("maxLength", "up to {} characters"),
    ("minItems", "{} or more"),
    ("maxItems", "up to {}"),
    ("maxProperties", "up to {}"),
)


def fields_table(schema: Schema) -> str:
    """The properties of an object schema: name, type, default, meaning."""
    required = set(schema.get("required", ()))
    rows = [
        (f"`{name}`", type_words(field), _default(field, name in required), one_line(field.get("description")))
        for name, field in schema.get("properties", {}).items()
    ]
    return table(("Field", "Type", "Default", "Meaning"), rows)


def type_words(schema: Schema) -> str:
    """A type as a reader says it, with its limits; references are links to headings of the same page."""
    limits = ", ".join(words.format(schema[key]) for key, words in _LIMITS if key in schema)
    return f"{_type(schema)} ({limits})" if limits else _type(schema)


def _type(schema: Schema) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{anchor(name)})"
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(type_words(option) for option in schema[key] if option.get("type") != "null")
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}" if "items" in schema else "list"
    return _plain(schema)


def _plain(schema: Schema) -> str:
    """A type that holds nothing else; a free mapping, and anything at all, too."""
    kind = schema.get("type", "anything")
    words = {"object": "mapping", "boolean": "`true` or `false`", "null": "nothing"}
    forms = {"date-time": "time (RFC 3339)", "binary": "bytes"}
    return forms.get(schema.get("format", "")) or words.get(kind, str(kind))


def _default(schema: Schema, required: bool) -> str:
    if required or "default" not in schema:
        return "required" if required else ""
    return _value(schema["default"])


def _value(value: Any) -> str:
    """A default as a reader wants it: objects are explained where they are described, so here by their kind only."""
    if value is None:
        return "none"
    if isinstance(value, dict) and value:
        return "its defaults"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return ", ".join(f"`{next(iter(item.values()))}`" for item in value)
    return f"`{json.dumps(value, ensure_ascii=False)}`"
