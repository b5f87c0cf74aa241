"""Files that a stage takes over unchanged, weights without copying their bytes where the file system allows it."""

import os
import shutil
from pathlib import Path

_LEFT_BEHIND = {"quantization.json", "scales.safetensors", "README.md", ".gitattributes", "training.json"}


def link_checkpoint(source: Path, target: Path) -> None:
    """Put every file of a checkpoint folder into another one. Descriptions of an earlier state stay behind."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name not in _LEFT_BEHIND:
            link(path, target / path.name)


def link(source: Path, target: Path) -> None:
    """Hard link weights where possible (a Hub cache's entries are links: their target is taken), copy all else.

    Small files are what people edit by hand, and an edit must not reach through a link into the source.
    """
    real = source.resolve()
    if source.suffix != ".safetensors" or not _linked(real, target):
        shutil.copyfile(real, target)


def _linked(real: Path, target: Path) -> bool:
    try:
        os.link(real, target)
    except OSError:  # another file system, or one without links
        return False
    return True
