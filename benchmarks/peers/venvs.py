"""A virtual environment for each peer below `.lathe/peers`: no two of them can share one, and none may touch ours.

Each wants its own transformers. torch is pinned exactly: a looser pin brings a CUDA build and its twenty wheels.
"""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".lathe" / "peers"

TORCH = "torch==2.13.0"
"""No peer of this list replaces it once it is in pip's constraints."""

REQUIREMENTS: dict[str, tuple[str, ...]] = {
    # `requests` is imported without being declared; the hf extra says transformers < 5.15.
    "modelopt": ("nvidia-modelopt==0.47.0", "transformers==5.14.1", "accelerate==1.15.0", "requests"),
    "llm-compressor": ("llmcompressor==0.14.0.1", "transformers==5.17.0", "compressed-tensors==0.19.0"),
    "torchao": ("torchao==0.18.0", "transformers==5.23.0"),
    "auto-round": ("auto-round==0.16.1", "transformers==5.23.0"),
}
"""The versions that were seen to work together, without a GPU, on Python 3.11."""


class VenvError(Exception):
    """An environment could not be made; the text is the end of what pip said."""


def peer_python(name: str) -> Path | None:
    """The interpreter that can import a peer, when `make_venv` finished it with today's requirements; else None."""
    folder = PEERS / name
    stamp = folder / "lathe-stamp"
    if stamp.is_file() and stamp.read_text() == _fingerprint(name):
        return folder / "bin" / "python"
    return None


def make_venvs(names: Iterable[str] = REQUIREMENTS) -> dict[str, Path | VenvError]:
    """Interpreters by peer; what cannot be installed here is an error that its rows will show."""
    found: dict[str, Path | VenvError] = {}
    for name in names:
        try:
            found[name] = peer_python(name) or make_venv(name)
        except VenvError as error:
            found[name] = error
    return found


def make_venv(name: str) -> Path:
    """Install one peer, about a minute; raises `VenvError`."""
    folder = PEERS / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    print(f"installing {', '.join(REQUIREMENTS[name])} into {folder.relative_to(ROOT)}", file=sys.stderr, flush=True)
    # Without pip: Debian's Python cannot bring one along, and ours can install for another interpreter.
    _do([sys.executable, "-m", "venv", "--without-pip", folder])
    constraints = folder / "constraints.txt"
    constraints.write_text(TORCH + "\n")
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check"]
    _do([*pip, "-c", constraints, TORCH, *REQUIREMENTS[name]])
    (folder / "lathe-stamp").write_text(_fingerprint(name))
    return python


def _fingerprint(name: str) -> str:
    parts = (TORCH, *REQUIREMENTS[name], sys.version)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _do(command: list[str | Path]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except subprocess.CalledProcessError as error:
        raise VenvError((error.stderr or error.stdout).strip()[-2000:]) from error
