"""Names on the disk that never stand for half-written bytes, power cuts included."""

import os
from pathlib import Path


def settle(part: Path, path: Path) -> None:
    """Rename a finished file or folder: its bytes reach the disk before the name, and the name before we go on."""
    for file in (part, *part.rglob("*")):
        flush(file)
    part.rename(path)
    flush(path.parent)


def write_settled(path: Path, text: str) -> None:
    """A small file that is there whole, or not at all."""
    part = path.with_suffix(".part")
    part.write_text(text)
    settle(part, path)


def flush(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
