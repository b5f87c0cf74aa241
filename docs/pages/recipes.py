"""The list of recipes, from the recipes themselves."""

from functools import cache
from pathlib import Path

from docs.pages.markdown import table
from optcore.recipe import load_recipe

RECIPES_FOLDER = Path(__file__).parents[1] / "recipes"


def recipes_page() -> str:
    """Every recipe with what it is for and the techniques of its chain."""
    rows = [(f"[{path.name}]({path.name})", purpose(path), ", ".join(map(_link, names))) for path, names in _chains()]
    return f"""# Recipes

Recipes to copy. All are read by the tests, those of the [techniques' pages](../techniques/README.md) are run by them,
and `python3 dev.py proofs-docs` runs every one through the engine on models small enough for it.

{table(("Recipe", "What for", "Chain"), rows)}
"""


def purpose(path: Path) -> str:
    """The comment that a recipe begins with."""
    lines = path.read_text(encoding="utf-8").splitlines()
    first = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line.removeprefix("#").strip() for line in lines[:first])


def recipes_with(technique: str) -> list[Path]:
    """Those whose chain has the technique."""
    return [path for path, names in _chains() if technique in names]


def _link(technique: str) -> str:
    return f"[`{technique}`](../techniques/{technique}.md)"


@cache
def _chains() -> list[tuple[Path, list[str]]]:
    paths = sorted(RECIPES_FOLDER.glob("*.yaml"))
    return [(path, list(dict.fromkeys(entry.technique for entry in load_recipe(path).chain))) for path in paths]
