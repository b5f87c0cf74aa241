"""A machine of one's own: no service, no key, no home of the person who runs the tests."""

from collections.abc import Callable
from pathlib import Path

import lathe_engine
import pytest
import yaml


@pytest.fixture(autouse=True)
def own_home(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LATHE_HOME of the test, and none of the variables that lead to a service."""
    for name in ("LATHE_URL", "LATHE_API_KEY", "LATHE_WEBHOOK_SECRET", "LATHE_MODEL_ROOTS"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("LATHE_HOME", str(home))
    monkeypatch.setenv("LATHE_ENGINE_COMMAND", lathe_engine.COMMAND)
    return home


@pytest.fixture
def recipe_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a recipe for the engine of `lathe_engine.py`; keyword arguments are its wishes."""
    (tmp_path / "model").mkdir()

    def write(**wishes: str) -> Path:
        path = tmp_path / "recipe.yaml"
        chain = [{"technique": "ptq", "scheme": "fp8"}]
        document = {"model": {"path": str(tmp_path / "model")}, "chain": chain, "metadata": wishes}
        path.write_text(yaml.safe_dump(document))
        return path

    return write
