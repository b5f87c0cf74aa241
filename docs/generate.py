"""Write the pages that are made from the code: `python -m docs.generate`, or `--check` to fail when one has drifted."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from docs.pages.cli import cli_page
from docs.pages.engines import engines_page
from docs.pages.notebook import notebook_page
from docs.pages.recipe import recipe_page
from docs.pages.recipes import recipes_page
from docs.pages.registries import formats_page
from docs.pages.rest import rest_page
from docs.pages.settings import settings_page
from docs.pages.techniques import evaluators_page, technique_page, techniques, techniques_page

FOLDER = Path(__file__).parent
NOTICE = "<!-- Made from the code by `python -m docs.generate`. Change the code, not this page. -->"
MIXED = "<!-- Made from the code by `python -m docs.generate`, but for what stands between the marks. -->"

_WHOLE: dict[str, Callable[[], str]] = {
    "techniques/README.md": techniques_page,
    "evaluators.md": evaluators_page,
    "recipes/README.md": recipes_page,
    "notebook.md": notebook_page,
    "formats.md": formats_page,
    "engines.md": engines_page,
    "recipe.md": recipe_page,
    "settings.md": settings_page,
    "cli.md": cli_page,
    "rest.md": rest_page,
}
_TECHNIQUES = {f"techniques/{name}.md": name for name in techniques()}
PAGES = (*_WHOLE, *_TECHNIQUES)


def drifted() -> list[str]:
    """Names of the pages that are not what the code says."""
    return [name for name in PAGES if _read(name) != expected(name)]


def expected(name: str) -> str:
    """What a page must hold; prose in the page of a technique stays as it is."""
    if name in _TECHNIQUES:
        return f"{MIXED}\n\n{technique_page(_TECHNIQUES[name], _read(name))}"
    return f"{NOTICE}\n\n{_WHOLE[name]()}"


def write() -> list[str]:
    """Write the pages that have drifted, and name them."""
    names = drifted()
    for name in names:
        (FOLDER / name).parent.mkdir(exist_ok=True)
        (FOLDER / name).write_text(expected(name), encoding="utf-8")
    return names


def main() -> int:
    """The command line: 0 when the pages are as the code says."""
    parser = argparse.ArgumentParser(prog="python -m docs.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a page has drifted")
    check = parser.parse_args().check
    names = drifted() if check else write()
    verb = "drifted" if check else "wrote"
    sys.stdout.write("".join(f"{verb} docs/{name}\n" for name in names) or "docs are as the code says\n")
    return int(check and bool(names))


def _read(name: str) -> str:
    path = FOLDER / name
    return path.read_text(encoding="utf-8") if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main())
