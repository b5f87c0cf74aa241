"""Names on the disk that never stand for half-written bytes, power cuts included."""

import os
from pathlib import Path


def settle(part: Path, path: Path) -> None:
    """Rename a finished file or folder: its bytes reach the disk before the name, and the name before we go on."""
    for file in (part, *part.rglob("*")):
        _flush(file)
    part.rename(path)
    _flush(path.parent)


def write_settled(path: Path, text: str) -> None:
    """A small file that is there whole, or not at all."""
    part = path.with_suffix(".part")
    part.write_text(text)
    settle(part, path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
