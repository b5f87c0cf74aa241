"""Documentation that cannot drift: recipes load, generated pages equal the code, links lead somewhere."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.doc_blocks import FENCE, ROOT, name_of, pages

from docs import generate
from docs.pages.markdown import anchor
from docs.pages.notebook import NOTEBOOK
from docs.pages.techniques import PROSE, technique_page, techniques
from optcore.recipe import load_recipe, parse_recipe
from optcore.schemes import KV_CACHE_PRESETS, PRESETS
from optcore.targets import checkpoints

RECIPES = sorted((ROOT / "docs" / "recipes").rglob("*.y*ml"))
PAGES = [page for page in pages() if not page.is_relative_to(ROOT / "docs" / "pages")]
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_every_recipe_is_one(path: Path) -> None:
    recipe = load_recipe(path)
    assert parse_recipe(recipe.to_yaml()) == recipe
    assert path.read_text(encoding="utf-8").startswith("# "), "a recipe begins by saying what it is for"


def test_every_number_format_has_a_recipe() -> None:
    entries = [entry for path in RECIPES for entry in load_recipe(path).chain]
    formats = (checkpoint for entry in entries for checkpoint in checkpoints(entry))
    named = {name for names in formats for name in names}
    assert named >= {*PRESETS, *(f"kv:{name}" for name in KV_CACHE_PRESETS)}


@pytest.mark.parametrize("name", generate.PAGES)
def test_generated_pages_are_what_the_code_says(name: str) -> None:
    held = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert held == generate.expected(name), "run `python3 dev.py docs`"


def test_the_check_fails_for_a_page_that_drifted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    assert generate.drifted() == list(generate.PAGES)
    assert generate.write() == list(generate.PAGES)
    assert generate.drifted() == []


@pytest.mark.parametrize("name", techniques())
def test_the_page_of_a_technique_keeps_its_prose_and_says_when_and_at_what_price(name: str) -> None:
    held = (ROOT / "docs" / "techniques" / f"{name}.md").read_text(encoding="utf-8")
    prose = held.partition(PROSE[0])[2].partition(PROSE[1])[0]
    _, when, price = re.split(r"^## (?:When|Trade-offs)$", prose, flags=re.M)
    assert min(len(when.strip()), len(price.strip())) > 60
    changed = held.replace(prose, f"{prose}one more line\n", 1)
    assert technique_page(name, changed) == technique_page(name, held).replace(prose, f"{prose}one more line\n", 1)


def test_the_notebook_is_kept_without_what_it_printed() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert {cell["cell_type"] for cell in cells} == {"code", "markdown"}
    assert all(
        cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code"
    )
    assert all(cell["metadata"] == {} for cell in cells)


@pytest.mark.parametrize("name", ["performance.md", "restructuring.md"])
def test_figures_of_the_choice_stand_on_the_pages_that_it_names(name: str) -> None:
    rows = [
        line for line in (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8").splitlines() if f"({name}#" in line
    ]
    figures = {
        figure for row in rows for figure in re.findall(r"(?<![\w.])\d[\d,]*\.?\d+(?![\w.])", row.split("](")[0])
    }
    source = re.sub(r"(?<![\d,])\.(?=\d)", "0.", (ROOT / "docs" / name).read_text(encoding="utf-8")).replace(",", "")
    assert len(figures) > 8
    assert [figure for figure in figures if figure.replace(",", "") not in source] == []


def test_pages_are_made_without_torch() -> None:
    program = "import sys; from docs import generate; generate.expected('recipe.md'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    lost = [link for link in LINK.findall(prose) if not re.match(r"https?://", link) and not leads(page, link)]
    assert lost == []


def leads(page: Path, link: str) -> bool:
    """Whether a relative link finds its file, inside the repository, and its heading."""
    path, _, fragment = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists() or not target.is_relative_to(ROOT):
        return False
    return not fragment or fragment in anchors(target)


def anchors(page: Path) -> set[str]:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return {anchor(heading) for heading in re.findall(r"^#+ (.+)$", text, re.M)}


def test_every_defence_names_code_and_a_test_that_are_there() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
    shown = re.findall(r"`([\w/]+\.py)::(\w+)`", text)
    assert len(shown) > 40
    for path, name in shown:
        assert f"def {name}(" in (ROOT / "tests" / path).read_text(encoding="utf-8"), f"{path} has no {name}"
    code = set(re.findall(r"`((?:api|worker|optcore|lathe)/[\w/]*(?:\.py)?|dev\.py)`", text))
    assert len(code) > 40
    assert sorted(path for path in code if not (ROOT / path).exists()) == []


def test_every_page_is_reachable_from_the_readme() -> None:
    seen, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen:
            continue
        seen.add(page)
        links = (link.partition("#")[0] for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))))
        waiting += [
            target for link in links if (target := (page.parent / link).resolve()).suffix == ".md" and target.exists()
        ]
    assert [name_of(page) for page in PAGES if page not in seen and page.is_relative_to(ROOT / "docs")] == []


def test_the_decisions_are_listed() -> None:
    folder = ROOT / "docs" / "adr"
    listed = re.findall(r"\((\d{4}-[\w-]+\.md)\)", (folder / "README.md").read_text(encoding="utf-8"))
    assert listed == sorted(path.name for path in folder.glob("0*.md"))
    for name in listed:
        text = (folder / name).read_text(encoding="utf-8")
        assert [word for word in ("**Context.**", "**Decision.**", "**Consequences.**") if word not in text] == []
