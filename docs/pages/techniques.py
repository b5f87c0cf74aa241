"""A page for each technique and one for the evaluators, from the registries of the engine and prose written by hand."""

from pathlib import Path
from typing import Any

from docs.pages.markdown import codes, one_line, table
from docs.pages.recipes import RECIPES_FOLDER, purpose, recipes_with
from docs.pages.schema import fields_table
from optcore.evaluate import AnyEvaluator
from optcore.frozen import members, tag
from optcore.techniques import AnyTechnique

PROSE = "<!-- By hand from here -->", "<!-- to here -->"
SKELETON = "\n## When\n\n## Trade-offs\n"
SHOWN = {
    "ptq": "nvfp4",
    "auto_quantize": "auto_quantize",
    "rotate": "rotated",
    "qad": "qad",
    "qat": "qat",
    "finetune": "qlora",
    "distill": "distill-student",
    "heal": "heal",
    "early_exit": "early-exit",
    "prune": "prune-width",
    "puzzle": "puzzle",
    "sparsify": "sparsify",
    "low_rank": "low-rank",
    "palettize": "palettize",
    "hash_share": "hash-share",
    "tie_layers": "tie-layers",
    "merge": "merge",
    "upcycle": "upcycle",
    "activation_sparsity": "activation-sparsity",
    "attention_window": "attention-window",
    "draft": "speculative",
}
"""The recipe on each technique's page. A test runs each of them through the engine."""


def techniques() -> dict[str, Any]:
    """Every technique by its name in a recipe."""
    return {tag(member): member for member in members(AnyTechnique)}


def techniques_page() -> str:
    """All techniques in one table."""
    rows = [
        (f"[`{name}`]({name}.md)", member.title, codes(sorted(member.needs)), codes(sorted(member.leaves)))
        for name, member in techniques().items()
    ]
    return f"""# Techniques

Entries of a recipe's `chain`, applied in order. What one *needs* must be left by the model or by an entry before it.
[Choosing a technique](../choosing.md) says which to begin with.

{table(("Technique", "What it is", "Needs", "Leaves"), rows)}
"""


def technique_page(name: str, held: str) -> str:
    """The page of a technique; what stands between the marks of `PROSE` in the page that is `held` stays."""
    member = techniques()[name]
    recipe = RECIPES_FOLDER / f"{SHOWN[name]}.yaml"
    others = [path for path in recipes_with(name) if path != recipe]
    more = f"More recipes with it: {', '.join(map(_link, others))}.\n\n" if others else ""
    return f"""# {member.title}: `{name}`

{one_line(member.__doc__)}

{PROSE[0]}{_prose(held)}{PROSE[1]}

## Recipe

{purpose(recipe)} A test runs {_link(recipe)} through the engine, on a small model and a few windows of text.

```yaml
{recipe.read_text(encoding="utf-8")}```

{more}## Source

{_source(member)}

## Fields and defaults

{_fields(member, "../recipe.md")}
"""


def evaluators_page() -> str:
    """What a recipe's `evaluate` may hold."""
    sections = "\n".join(
        f"## `{tag(member)}`: {member.title}\n\n{one_line(member.__doc__)}\n\n{_fields(member, 'recipe.md')}\n"
        for member in members(AnyEvaluator)
    )
    return f"""# Evaluators

Entries of a recipe's `evaluate`. Source and result are measured in the same run on the same input. Size on disk,
bits per weight and parameters are always measured.

{sections}"""


def _prose(held: str) -> str:
    if all(mark in held for mark in PROSE):
        return held.partition(PROSE[0])[2].partition(PROSE[1])[0]
    return SKELETON


def _source(member: Any) -> str:
    facts = [("needs", member.needs), ("leaves", member.leaves), ("removes", member.removes)]
    said = "; ".join(f"{verb} {codes(sorted(names))}" for verb, names in facts if names).capitalize()
    return f"[Paper]({member.paper}). {said or 'Leaves the model as it is'}."


def _fields(member: Any, reference: str) -> str:
    """Links lead to the recipe reference, where the objects that several members share are explained once."""
    return fields_table(member.model_json_schema()).replace("](#", f"]({reference}#")


def _link(recipe: Path) -> str:
    return f"[{recipe.name}](../recipes/{recipe.name})"
