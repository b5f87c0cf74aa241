"""Documentation that cannot drift: recipes load, generated pages equal the code, links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs import generate
from docs.pages import cli
from docs.pages.markdown import anchor
from optcore.frozen import Frozen
from optcore.recipe import load_recipe, parse_recipe
from optcore.schemes import KV_CACHE_PRESETS, PRESETS
from optcore.targets import checkpoints

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "docs" / "recipes").rglob("*.y*ml"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def pages() -> list[Path]:
    """The Markdown files of the repository, as git would see them."""
    found = [
        *ROOT.glob("*.md"),
        *(page for name in ("docs", "models", "benchmarks") for page in (ROOT / name).rglob("*.md")),
    ]
    return sorted(found)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


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


@pytest.mark.parametrize("page", ["README.md"])
def test_recipes_in_prose_are_recipes(page: str) -> None:
    blocks = [text for language, text in FENCE.findall((ROOT / page).read_text(encoding="utf-8")) if language == "yaml"]
    assert blocks
    assert all(isinstance(parse_recipe(text), Frozen) for text in blocks)


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_python_in_prose_compiles(page: Path) -> None:
    for language, text in FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            assert compile(text, name_of(page), "exec")


@pytest.mark.parametrize("name", generate.PAGES)
def test_generated_pages_are_what_the_code_says(name: str) -> None:
    held = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert held == generate.expected(name), "run `python3 dev.py docs`"


def test_the_check_fails_for_a_page_that_drifted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    assert generate.drifted() == list(generate.PAGES)
    assert generate.write() == list(generate.PAGES)
    assert generate.drifted() == []


def test_pages_are_made_without_torch() -> None:
    program = "import sys; from docs import generate; generate.expected('recipe.md'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("page", pages(), ids=name_of)
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
    assert [name_of(page) for page in pages() if page not in seen and page.is_relative_to(ROOT / "docs")] == []


def test_the_decisions_are_listed() -> None:
    folder = ROOT / "docs" / "adr"
    listed = re.findall(r"\((\d{4}-[\w-]+\.md)\)", (folder / "README.md").read_text(encoding="utf-8"))
    assert listed == sorted(path.name for path in folder.glob("0*.md"))
    for name in listed:
        text = (folder / name).read_text(encoding="utf-8")
        assert [word for word in ("**Context.**", "**Decision.**", "**Consequences.**") if word not in text] == []


def test_the_commands_that_people_read_exist() -> None:
    prose = "\n".join(page.read_text(encoding="utf-8") for page in pages())
    entry = (ROOT / "dev.py").read_text(encoding="utf-8")
    for target in set(re.findall(r"dev\.py (\w+)", prose)):
        assert f"def {target}(" in entry
    known = {words for words, _ in cli.commands()}
    for language, text in FENCE.findall(prose):
        if language == "shell":
            typed = re.findall(r"^lathe (\w+)(?: (\w+))?", text, re.M)
            assert [words for words in typed if not {f"lathe {words[0]}", f"lathe {' '.join(words)}"} & known] == []
