"""A project that uses the package: what it is told about types is enough for mypy's strict mode. Part of `check`."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # 20 s of mypy where its cache is cold; `dev.py check` runs it
HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
# Kept between runs: what the package depends on takes mypy 20 s to read, and half a second to know again.
CACHE = ROOT / ".mypy_cache" / "consumer"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter whose site packages are this package, as a consumer has it, and what it needs."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder)
    places = [str(ROOT), sysconfig.get_path("purelib")]
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (site / "lathe.pth").write_text("\n".join(places))
    return folder / "bin" / "python"


def _mypy(python: Path, *what: str, folder: Path) -> str:
    options = ["--strict", "--config-file=", "--python-executable", str(python), "--cache-dir", str(CACHE)]
    command = [sys.executable, "-m", "mypy", *options, *what]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder).stdout


def test_a_consumer_passes_strict_mode(python: Path) -> None:
    assert _mypy(python, "-p", "consumer", folder=HERE).startswith("Success: no issues found in 5 source files")


def test_a_wrong_use_is_noticed_before_it_runs(python: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(
        "import lathe\n\n\n"
        "def use(job: lathe.Job, other: lathe.AsyncJob) -> int:\n"
        "    job.wait(timeot=3)\n"
        "    other.cancel()\n"
        "    return job.status\n"
    )
    said = _mypy(python, "wrong.py", folder=tmp_path)
    assert 'wrong.py:5: error: Unexpected keyword argument "timeot" for "wait" of "Job"' in said
    assert "wrong.py:6: error: Value of type" in said
    assert "wrong.py:7: error: Incompatible return value type" in said
