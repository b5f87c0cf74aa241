"""The OpenAPI document: what the framework derives, and the bodies and problems that it cannot see."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from api.deps import IDEMPOTENCY_KEY, IDEMPOTENCY_KEY_characters
from lathe.models import Problem

_TEMPLATE = "#/components/schemas/{model}"


def takes(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """`openapi_extra` of a route that reads its body itself."""
    content = {"application/json": {"schema": {"$ref": _TEMPLATE.format(model=model.__name__)}}}
    return {"requestBody": {"required": required, "content": content}}


def keyed(scope: str) -> dict[str, Any]:
    """`openapi_extra` of a route that reads its API key and its Idempotency-Key itself, by `api.deps`."""
    length = {"minLength": 1, "maxLength": IDEMPOTENCY_KEY_characters}
    text = {"type": "string", **length, "pattern": IDEMPOTENCY_KEY}
    said = {"description": "Kept for 24 hours."}
    schema = {"anyOf": [text, {"type": "null"}], "title": "Idempotency-Key", **said}
    key = {"name": "idempotency-key", "in": "header", "required": False, "schema": schema, **said}
    return {"security": [{"HTTPBearer": [scope]}], "parameters": [key]}


def document(app: FastAPI, bodies: list[type[BaseModel]]) -> dict[str, Any]:
    """The whole document."""
    made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    wanted: list[tuple[Any, Any]] = [(model, "validation") for model in (*bodies, Problem)]
    _, schemas = models_json_schema(wanted, ref_template=_TEMPLATE)
    made["components"]["schemas"] |= schemas["$defs"]
    for path in made["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)  # the framework's own form, which `api.problems` replaces
            operation["responses"]["default"] = _PROBLEM
    for unused in ("HTTPValidationError", "ValidationError"):
        made["components"]["schemas"].pop(unused, None)
    made["components"]["schemas"] = dict(sorted(made["components"]["schemas"].items()))
    return made


_PROBLEM = {
    "description": "A problem (RFC 9457)",
    "content": {"application/problem+json": {"schema": {"$ref": _TEMPLATE.format(model="Problem")}}},
}
