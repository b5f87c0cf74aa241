"""Which files make a checkpoint, and their digest."""

import hashlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from optcore.errors import BadCheckpoint, UnsafeCheckpoint
from optcore.manifest import MANIFEST

if TYPE_CHECKING:
    from optcore.sources.hub import Report  # whoever only asks for a file's name needs no client of the Hub

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
"""Any one of them will do."""
MATTERS = (
    CONFIG,
    "generation_config.json",
    *TOKENIZERS,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files beside the weights that change what the model says."""
ABOUT = ("README.md", "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", MANIFEST)
"""Files that say where a model comes from and what it may be used for, and that go along."""
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_CHUNK_bytes = 1 << 20


def weights_form(names: Collection[str], where: str, field: str) -> str:
    """`INDEX` or `SINGLE`, whichever the folder has. Raises `UnsafeCheckpoint` or `BadCheckpoint` for neither."""
    for form in (INDEX, SINGLE):
        if form in names:
            return form
    pickled = sorted(name for name in names if name.endswith(_PICKLED))
    if pickled:
        remedy = "convert the weights to safetensors; a pickle can run any code when it is read"
        raise UnsafeCheckpoint(f"{where} has only pickled weights, such as {pickled[0]}", remedy=remedy, field=field)
    remedy = "give a folder or repository in the form that `save_pretrained` writes"
    raise BadCheckpoint(f"{where} has neither {SINGLE} nor {INDEX}", remedy=remedy, field=field)


def require_files(names: Collection[str], where: str, field: str) -> None:
    """Raise `BadCheckpoint` when the config or every kind of tokenizer is missing."""
    if CONFIG not in names:
        raise BadCheckpoint(f"{where} has no {CONFIG}", remedy="add the model's config.json", field=field)
    if not any(name in names for name in TOKENIZERS):
        remedy = "save the tokenizer beside the model (`tokenizer.save_pretrained`)"
        raise BadCheckpoint(f"{where} has no tokenizer (one of {', '.join(TOKENIZERS)})", remedy=remedy, field=field)


def hash_files(folder: Path, names: Iterable[str], report: "Report") -> dict[str, str]:
    """SHA-256 by name, in the order of names."""
    ordered = sorted(names)
    done, total = 0, sum((folder / name).stat().st_size for name in ordered)
    hashes: dict[str, str] = {}
    for name in ordered:
        digest = hashlib.sha256()
        with (folder / name).open("rb") as file:
            while chunk := file.read(_CHUNK_bytes):
                digest.update(chunk)
        hashes[name] = digest.hexdigest()
        done += (folder / name).stat().st_size
        report("hashing", done, total)
    return hashes


def content_digest(hashes: dict[str, str]) -> str:
    """SHA-256 over sorted names and hashes: equal for equal content, wherever it lies."""
    lines = (f"{name}\x00{hashes[name]}\n" for name in sorted(hashes))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
