"""The recipes of the documentation, run by the engine: one for each technique here, every one in the proofs."""

from pathlib import Path

import pytest
from fixtures.engine_runs import run_here
from fixtures.small_recipes import MakeSmall

from docs.pages.recipes import RECIPES_FOLDER
from docs.pages.techniques import SHOWN, techniques
from optcore.events import RunFinished

OTHERS = sorted(path for path in RECIPES_FOLDER.glob("*.yaml") if path.stem not in SHOWN.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all runs: what they share, such as the text that is calibrated on, is made once."""
    return tmp_path_factory.mktemp("runs")


def test_every_technique_shows_a_recipe_with_it() -> None:
    assert list(SHOWN) == list(techniques())


@pytest.mark.parametrize("technique", SHOWN)
def test_the_recipe_on_the_page_of_a_technique_runs(technique: str, small_recipe: MakeSmall, folder: Path) -> None:
    _run(RECIPES_FOLDER / f"{SHOWN[technique]}.yaml", small_recipe, folder, technique)


@pytest.mark.proof
@pytest.mark.slow
@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
def test_every_other_recipe_runs(path: Path, small_recipe: MakeSmall, folder: Path) -> None:
    _run(path, small_recipe, folder)


def _run(path: Path, small_recipe: MakeSmall, folder: Path, technique: str = "") -> None:
    ran = run_here(small_recipe(path), folder, path.stem)
    assert isinstance(ran.events[-1], RunFinished)
    assert (ran.out / "manifest.json").exists()
    assert not technique or any(name.endswith(f"-{technique}") for name in ran.stages), list(ran.stages)
