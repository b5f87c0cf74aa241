"""What is put down when something is added: as little as is valid, or a common choice where there is no default."""

from copy import deepcopy
from typing import Any

from api.dashboard.recipe_form.schema import Schema, choices, named, resolved, variants

_COMMON: dict[str, dict[str, Any]] = {
    "ptq": {"scheme": "nvfp4"},
    "auto_quantize": {"candidates": ["nvfp4", "fp8"], "effective_bits": 6.0},
    "prune": {"width": 0.25},
    "puzzle": {"target": {"params": 0.75}},
    "tie_layers": {"ties": 2},
    "merge": {"others": [{"model": {"id": "org/another-model"}}]},
    "attention_window": {"window": 4096},
}
"""By technique, where nothing but the tag would be refused."""
_GATE = {"metric": "kl", "max": 0.05}


def starter(schema: Schema) -> Any:
    """A value to begin with."""
    if "default" in schema and schema["default"] is not None:
        return deepcopy(schema["default"])
    schema = variants(schema)[0]
    if closed := choices(schema):
        return closed[0]
    kind = schema.get("type")
    if kind == "object":
        return _object(schema)
    if kind == "array":
        items = schema.get("prefixItems") or [schema.get("items", {})] * schema.get("minItems", 0)
        return [starter(resolved(each)) for each in items]
    if kind in ("integer", "number"):
        return schema.get("minimum", 1)
    return False if kind == "boolean" else ""


def _object(schema: Schema) -> dict[str, Any]:
    fields = schema.get("properties", {})
    if "metric" in fields:
        return dict(_GATE)
    tag = named(schema)
    found: dict[str, Any] = {tag[0]: tag[1]} if tag else {}
    begun = {key: starter(resolved(fields[key])) for key in schema.get("required", ()) if key not in found}
    needed = {key: value for key, value in begun.items() if value != ""}
    return {**found, **needed, **deepcopy(_COMMON.get(tag[1], {}) if tag else {})}
