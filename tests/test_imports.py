"""What importing costs: the SDK, the API, the recipe and the worker start without torch, and imports flow one way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "transformers", "triton", "numpy", "safetensors"}
WEB = {"fastapi", "starlette"}
SERVICE = {"sqlalchemy", "psycopg", "celery", "kombu"} | WEB


def _environment() -> dict[str, str]:
    """Settings that are complete and lead nowhere: an import connects to nothing."""
    settings = {
        "LATHE_DATABASE_URL": "postgresql://nobody@127.0.0.1:9/none",
        "LATHE_REDIS_URL": "redis://127.0.0.1:9/0",
        "LATHE_DATA_DIR": str(ROOT / ".lathe"),
        "LATHE_SECRET_KEY": "0" * 64,
    }
    return {**os.environ, **settings}


def _loaded_by(module: str) -> set[str]:
    """Top-level packages in a fresh interpreter after it imported one module."""
    script = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, env=_environment())
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("optcore.recipe", HEAVY | SERVICE),
        ("lathe", HEAVY | SERVICE),
        ("lathe.cli", HEAVY | SERVICE),
        ("lathe.local.servers", HEAVY | SERVICE | {"pydantic"}),
        ("api.main", HEAVY | {"celery", "kombu"}),
        ("worker.app", HEAVY | WEB),
    ],
)
def test_importing_a_door_loads_only_its_own_room(module: str, unwanted: set[str]) -> None:
    assert _loaded_by(module) & unwanted == set()


def test_imports_flow_one_way() -> None:
    tool = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([tool, "--no-cache"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
