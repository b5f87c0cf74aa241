"""The recipe's JSON schema, as the form walks it: references followed, unions spread out, defaults taken off."""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from optcore.evaluate import AnyEvaluator
from optcore.export import AnyExport
from optcore.frozen import members, tag
from optcore.recipe import Recipe
from optcore.techniques import AnyTechnique
from optcore.techniques.losses import AnyLoss

Schema = Mapping[str, Any]
NAME = "$name"
"""Key under which a followed reference keeps its definition's name."""


@cache
def recipe_schema() -> Schema:
    """Of the whole recipe."""
    return Recipe.model_json_schema()


def resolved(schema: Schema) -> Schema:
    """The schema that a reference stands for, with what the field itself says on top."""
    reference = schema.get("$ref")
    if reference is None:
        return schema
    name = reference.rpartition("/")[2]
    said = {key: value for key, value in schema.items() if key != "$ref"}
    return {**recipe_schema()["$defs"][name], NAME: name, **said}


def variants(schema: Schema) -> list[Schema]:
    """What a value may be, null left out; the schema alone where it is no union."""
    inner = schema.get("oneOf") or schema.get("anyOf")
    if inner is None:
        return [schema]
    return [found for each in inner for found in variants(resolved(each)) if found.get("type") != "null"]


def is_nullable(schema: Schema) -> bool:
    """Whether null is a value of its own."""
    return any(resolved(each).get("type") == "null" for each in schema.get("anyOf", ()))


def single(schema: Schema) -> Schema:
    """A field that is one thing or null, as that thing; what the field says of itself stays."""
    found = variants(schema)
    if len(found) != 1 or found[0] is schema:
        return schema
    return {**found[0], **{key: value for key, value in schema.items() if key not in ("anyOf", "oneOf")}}


def choices(schema: Schema) -> list[Any] | None:
    """The values of a closed list of scalars; None for anything else."""
    found: list[Any] = []
    for each in variants(schema):
        values = each.get("enum", [each["const"]] if "const" in each else None)
        if values is None:
            return None
        found += [value for value in values if value not in found]
    return found


def named(schema: Schema) -> tuple[str, str] | None:
    """The key and the value that say which member of a closed union this is."""
    for key, field in schema.get("properties", {}).items():
        if "const" in field and isinstance(field["const"], str):
            return key, field["const"]
    return None


def variant_of(options: list[Schema], value: Any) -> int | None:
    """Which variant a value is of: the one whose tag it has, else the one that knows all of its keys."""
    for number, each in enumerate(options):
        key_and_name = named(each)
        if isinstance(value, dict) and key_and_name and value.get(key_and_name[0]) == key_and_name[1]:
            return number
    for number, each in enumerate(options):
        if _could_be(each, value):
            return number
    return None


def _could_be(schema: Schema, value: Any) -> bool:
    kind = schema.get("type")
    if kind == "object":
        return isinstance(value, dict) and named(schema) is None and set(value) <= set(schema.get("properties", value))
    if kind == "array":
        return isinstance(value, list)
    closed = choices(schema)
    if closed is not None:
        return value in closed
    if kind in ("integer", "number"):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, bool) if kind == "boolean" else isinstance(value, str)


@cache
def title_of(name: str) -> str:
    """What people call a definition: the title that its class was given, else its name in words."""
    return _titles().get(name) or words(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())


@cache
def _titles() -> dict[str, str]:
    unions = (AnyTechnique, AnyExport, AnyEvaluator, AnyLoss)
    return {
        kind.__name__: getattr(kind, "title", "") or words(tag(kind)) for union in unions for kind in members(union)
    }


_SPELT = {"id": "Hub id", "kv": "KV", "gpu": "GPU", "gptq": "GPTQ", "lora": "LoRA", "gib": "GiB", "kl": "KL"}


def words(name: str) -> str:
    """A field's name as a label: `kv_cache` is `KV cache`."""
    told = " ".join(_SPELT.get(part, part) for part in name.replace("-", "_").split("_"))
    return told[:1].upper() + told[1:]


def brief(schema: Schema, value: Any) -> Any:
    """A document without what the schema fills in by itself; tags stay, and lead: they say what a thing is."""
    options = variants(resolved(schema))
    found = variant_of(options, value) if len(options) > 1 else 0
    known = options[found] if found is not None else {}
    if isinstance(value, dict) and "properties" in known:
        fields = {key: resolved(field) for key, field in known["properties"].items()}
        kept = {key: each for key, each in value.items() if key not in fields or not _is_default(fields[key], each)}
        first = named(known)
        tagged = {first[0]: kept[first[0]]} if first and first[0] in kept else {}
        return {**tagged, **{key: brief(fields.get(key, {}), each) for key, each in kept.items()}}
    if isinstance(value, list) and "items" in known:
        return [brief(known["items"], each) for each in value]
    return value


def _is_default(field: Schema, value: Any) -> bool:
    is_tag = isinstance(field.get("const"), str)
    return not is_tag and "default" in field and bool(field["default"] == value)
