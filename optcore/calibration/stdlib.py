"""The Python standard library's own sources as a text data set that every machine already has.

A demo, a test and an air-gapped user need real text without a network. The interpreter that runs us ships about
9 MB of it. Modules are split by the hash of their top-level name, so a package never straddles the splits and the
split of a module is the same on every Python version.
"""

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

Split = Literal["train", "test"]

_TEST_SHARE = 10  # one top-level module in ten is held out
_NEVER = {"site-packages", "dist-packages", "encodings", "pydoc_data"}  # not the library, or tables rather than prose
_NOT_EVERYWHERE = {
    "test",
    "tests",
    "idle_test",
    "idlelib",
    "lib2to3",
    "distutils",
    "tkinter",
    "turtledemo",
    "ensurepip",
}


class Document(NamedTuple):
    """One source file: its path below the library root and its text."""

    name: str
    text: str


def documents(split: Split, *, everything: bool = False) -> Iterator[Document]:
    """Yield the library's modules of one split in a fixed, shuffled order.

    `everything` adds what only some distributions and versions ship, CPython's own test suite above all: for training
    a model, not for calibration data that should be alike elsewhere.
    """
    root = _root()
    for name in _names(split, everything):
        text = (root / name).read_text(encoding="utf-8", errors="replace")
        if text.strip():
            yield Document(name, text)


def _root() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


@cache
def _names(split: Split, everything: bool) -> tuple[str, ...]:
    """Modules of a split, in their order. They are listed once: the packages installed below the library are many."""
    return tuple(sorted((name for name in _modules(everything) if split_of(name) == split), key=_digest))


def _modules(everything: bool) -> Iterator[str]:
    root, unwanted = _root(), _NEVER if everything else _NEVER | _NOT_EVERYWHERE
    for folder, folders, files in os.walk(root):
        folders[:] = set(folders) - unwanted
        below = Path(folder).relative_to(root)
        yield from ((below / file).as_posix() for file in files if file.endswith(".py"))


def split_of(name: str) -> Split:
    """The split of a module path such as `asyncio/events.py` or `test/test_asyncio/test_events.py`."""
    parts = name.removesuffix(".py").split("/")
    if parts[0] == "test" and len(parts) > 1:
        parts = parts[1:]
    key = parts[0].removeprefix("test_")
    return "test" if int(_digest(key), 16) % _TEST_SHARE == 0 else "train"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
