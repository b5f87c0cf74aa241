"""The REST page, from the OpenAPI document of the service."""

import re
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from api.main import create_app
from api.settings import Settings
from docs.pages.markdown import anchor, one_line, table
from docs.pages.schema import Schema, fields_table, type_words
from optcore.recipe import Recipe

_RECIPE = Recipe.model_json_schema()
_EXPLAINED = {"Recipe", *_RECIPE["$defs"]}
_ELSEWHERE = re.compile(r"\]\(#(?=(?:" + "|".join(map(anchor, sorted(_EXPLAINED))) + r")\))")
_METHODS = ("get", "post", "put", "patch", "delete")


def rest_page() -> str:
    """Every operation, then every object that bodies and answers hold."""
    document = _openapi()
    operations = [
        _operation(path, method, item[method])
        for path, item in document["paths"].items()
        for method in _METHODS
        if method in item
    ]
    schemas = document["components"]["schemas"]
    objects = [_object(name, schema) for name, schema in schemas.items() if name not in _EXPLAINED]
    page = f"""# REST API

Authenticate with `Authorization: Bearer lk_...`. Bodies are JSON. Errors are problem details (RFC 9457,
`application/problem+json`) with a stable `code` and, where there is one, a `remedy`. `GET /openapi.json` is this
page for programs.

## Operations

{"".join(operations)}
## Objects

Those that a recipe is made of are in the [recipe reference](recipe.md).

{"".join(objects)}"""
    return _ELSEWHERE.sub("](recipe.md#", page)


def _openapi() -> dict[str, Any]:
    """The document of an application that is never started, so its settings lead nowhere."""
    settings = Settings(
        database_url="postgresql://docs@127.0.0.1:9/docs", data_dir=Path("/nonexistent"), secret_key=SecretStr("-" * 32)
    )
    return create_app(settings).openapi()


def _operation(path: str, method: str, operation: Schema) -> str:
    about = _words(operation) or one_line(operation.get("summary"))
    parameters = [_parameter(parameter) for parameter in operation.get("parameters", ())]
    answers = [(status, _words(answer), _body(answer)) for status, answer in operation["responses"].items()]
    parts = [f"### `{method.upper()} {path}`", about]
    parts += [f"Body: {_body(operation['requestBody'])}"] if "requestBody" in operation else []
    parts += [table(("Parameter", "In", "Type", "Meaning"), parameters)] if parameters else []
    parts += [table(("Status", "Meaning", "Body"), answers)]
    return "\n\n".join(part for part in parts if part) + "\n\n"


def _parameter(parameter: Schema) -> tuple[str, str, str, str]:
    name = f"`{parameter['name']}`" + (" (required)" if parameter.get("required") else "")
    return name, parameter["in"], type_words(parameter["schema"]), _words(parameter)


def _body(holder: Schema) -> str:
    return "; ".join(_content(kind, body.get("schema", {})) for kind, body in holder.get("content", {}).items())


def _content(kind: str, schema: Schema) -> str:
    """JSON by what is in it, everything else by its media type."""
    return type_words(schema) if kind.endswith("json") and schema else f"`{kind}`"


def _words(described: Schema) -> str:
    return one_line(described.get("description"))


def _object(name: str, schema: Schema) -> str:
    fields = fields_table(schema) if schema.get("properties") else type_words(schema)
    return f"### {name}\n\n{_words(schema)}\n\n{fields}\n\n"
