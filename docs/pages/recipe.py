"""The recipe reference, from the recipe's own JSON Schema."""

from docs.pages.markdown import one_line
from docs.pages.schema import Schema, fields_table
from optcore.recipe import Recipe


def recipe_page() -> str:
    """Every field of a recipe, one section for each kind of object in it."""
    schema = Recipe.model_json_schema()
    sections = [_section("Recipe", schema)]
    sections += [_section(name, part) for name, part in schema["$defs"].items() if part.get("properties")]
    return f"""# Recipe reference

A recipe is one YAML (or JSON) document: the model to start from, the techniques in order, the format to write. The same
document is the body of `POST /v1/jobs`, the argument of the SDK and the input of `lathe run`. Keys that are not listed
here are refused. `lathe schema` prints the JSON Schema, and [recipes](recipes/README.md) holds examples.

{"".join(sections)}"""


def _section(name: str, schema: Schema) -> str:
    return f"## {name}\n\n{one_line(schema.get('description'))}\n\n{fields_table(schema)}\n\n"
