"""Files that a stage takes over unchanged, weights without copying their bytes where the file system allows it."""

import filecmp
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from optcore.draft_made import MADE
from optcore.forms import CONDITIONAL, FORMS, PUZZLE, SPARSITY
from optcore.sizes import weight_files
from optcore.sources.checkpoint_files import CONFIG, INDEX, MATTERS

LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE")


def link_checkpoint(source: Path, target: Path) -> None:
    """Put the weights of a checkpoint folder and the files that belong to them into another one."""
    for path in weight_files(source):
        link(path, target / path.name)
    if (index := source / INDEX).exists():
        link(index, target / INDEX)
    link_companions(source, target)


def link_draft(source: Path, target: Path) -> None:
    """Put a draft, as it is, into another folder: its weights, and what says what they are and how they did."""
    for path in weight_files(source):
        link(path, target / path.name)
    for name in (CONFIG, INDEX, MADE):
        if (source / name).is_file():
            link(source / name, target / name)


def link_companions(source: Path, target: Path) -> None:
    """Configuration, tokenizer and licence: known names only."""
    link_named(source, target, (*MATTERS, *LICENCES))


def link_named(source: Path, target: Path, names: Iterable[str]) -> None:
    """Those of some files that are there. A licence that is a symbolic link could be any file, and stays behind."""
    for name in names:
        path = source / name
        if path.is_file() and not (name in LICENCES and path.is_symlink()):
            link(path, target / name)


def link_forms(source: Path, target: Path) -> None:
    """What says of which form a checkpoint's weights are, where they are of any (zeros counted, factors of products,
    tables and shared numbers), and how the model is to be run.

    It is true of these very weights only, and no part of the model: no index names it, and no size counts it.
    """
    for name in FORMS:
        if (source / name).is_file():
            link(source / name, target / name)


def link_documents(source: Path, target: Path) -> None:
    """What is true of the same values wherever they are stored: where zeros are, how layers differ, how it is run."""
    for name in (SPARSITY, PUZZLE, CONDITIONAL):
        if (source / name).is_file():
            link(source / name, target / name)


def carry_structure(source: Path, target: Path) -> None:
    """What says how layers differ, which stays true of other values in the same places."""
    if (source / PUZZLE).is_file():
        link(source / PUZZLE, target / PUZZLE)


def link(source: Path, target: Path) -> None:
    """Hard link weights where possible (a Hub cache's entries are links: their target is taken), copy all else.

    Small files are what people edit by hand, and an edit must not reach through a link into the source. What a killed
    process left at the target goes: it may be a link to the source, which cannot be copied onto itself.
    """
    real = source.resolve()
    target.unlink(missing_ok=True)
    if source.suffix != ".safetensors" or not _linked(real, target):
        shutil.copyfile(real, target)


def same_weights(source: Path, checkpoint: Path) -> bool:
    """Whether a checkpoint's dense weights are the source's own files: a quantizing stage links them."""
    ours, theirs = weight_files(checkpoint), weight_files(source)
    return len(ours) == len(theirs) and all(
        a.samefile(b) or _equal_bytes(a, b) for a, b in zip(ours, theirs, strict=True)
    )


def _equal_bytes(a: Path, b: Path) -> bool:
    """Where a file system knows no links, weights were copied."""
    return a.stat().st_size == b.stat().st_size and filecmp.cmp(a, b, shallow=False)


def _linked(real: Path, target: Path) -> bool:
    try:
        os.link(real, target)
    except OSError:  # another file system, or one without links
        return False
    return True
