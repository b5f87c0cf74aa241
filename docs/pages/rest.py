"""The REST page, from the OpenAPI document of the service."""

from typing import Any

from docs.pages.markdown import one_line, table
from docs.pages.schema import Schema, fields_table, type_words

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
    schemas = document.get("components", {}).get("schemas", {})
    objects = [_object(name, schema) for name, schema in schemas.items()]
    return f"""# REST API

Authenticate with `Authorization: Bearer lk_...`. Bodies are JSON. Errors are problem details (RFC 9457,
`application/problem+json`) with a stable `code` and, where there is one, a `remedy`. `GET /openapi.json` is this
page for programs.

## Operations

{"".join(operations)}
## Objects

{"".join(objects)}"""


def _openapi() -> dict[str, Any]:
    from api.main import create_app

    return create_app().openapi()


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
    content = holder.get("content", {})
    return "; ".join(
        type_words(body.get("schema", {})) if kind == "application/json" else f"`{kind}`"
        for kind, body in content.items()
    )


def _words(described: Schema) -> str:
    return one_line(described.get("description"))


def _object(name: str, schema: Schema) -> str:
    fields = fields_table(schema) if schema.get("properties") else type_words(schema)
    return f"### {name}\n\n{_words(schema)}\n\n{fields}\n\n"
