"""The text to calibrate on: a file of this machine, the standard library's sources, or part of a Hub data set."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from optcore.calibration.stdlib import documents
from optcore.errors import DataError
from optcore.references import NeededText
from optcore.sources.checkpoint_files import content_digest, hash_files
from optcore.sources.client import HubRepo
from optcore.sources.hub import Pinned, Report, download, pin, verify
from optcore.sources.local import ROOTS_VARIABLE, is_allowed
from optcore.sources.splits import FORMS, form_of, train_files

_BYTES_A_TOKEN = 16
"""A generous guess: English has four or five; Parquet compresses, and evaluation needs text of its own."""


class FetchedData(NamedTuple):
    """Text files on this machine, for `read_texts`."""

    files: tuple[Path, ...]
    """Empty for the standard library's sources."""
    revision: str | None
    """Commit of a Hub data set."""
    digest: str
    """SHA-256 over the content."""


def fetch_data(needed: NeededText, cache: Path, report: Report, place: str = "/calibration") -> FetchedData:
    """Bring text here: of a Hub data set, as many files of its `train` split as the tokens can need.

    `place` is where the recipe names it, a JSON Pointer.

    Raises `DataError`, `SourceNotFound`, `SourceGated`, `HubUnavailable`, `OutOfDisk`.
    """
    if needed.text.path is not None:
        return fetch_file(Path(needed.text.path), f"{place}/path", report)
    if needed.text.is_built_in:
        return FetchedData((), None, _digest_of_stdlib())
    return _from_hub(needed, cache, report, place)


def fetch_file(path: Path, field: str, report: Report) -> FetchedData:
    """One file of this machine, which `field` of the recipe names, hashed. Raises `DataError`."""
    if not is_allowed(path):
        remedy = f"ask the operator to add its folder to {ROOTS_VARIABLE}"
        raise DataError(f"{path} is outside the folders that data may come from", remedy=remedy, field=field)
    if not path.is_file():
        remedy = "give a file on the machine that runs the engine"
        raise DataError(f"there is no file {path}", remedy=remedy, field=field)
    if not form_of(path.name):
        raise DataError(f"cannot tell how to read {path.name}", remedy=f"give one of: {', '.join(FORMS)}", field=field)
    hashes = hash_files(path.parent, [path.name], report)
    return FetchedData((path.absolute(),), None, content_digest(hashes))


def _from_hub(needed: NeededText, cache: Path, report: Report, place: str) -> FetchedData:
    repo = HubRepo(
        kind="dataset",
        id=str(needed.text.dataset),
        revision=needed.text.revision,
        id_field=f"{place}/dataset",
        revision_field=f"{place}/revision",
    )
    pinned = pin(repo)
    shards = train_files(pinned.files, pinned.card, needed.text.subset)
    chosen = _first_shards(shards, pinned, needed.tokens * _BYTES_A_TOKEN)
    folder = download(repo, pinned, chosen, cache, report)
    hashes = hash_files(folder, chosen, report)
    verify(folder, pinned, hashes)
    return FetchedData(tuple(folder / path for path in chosen), pinned.commit, content_digest(hashes))


def _first_shards(paths: Iterable[str], pinned: Pinned, enough_bytes: int) -> tuple[str, ...]:
    chosen: list[str] = []
    for path in paths:
        if sum(pinned.files[name].size for name in chosen) >= enough_bytes:
            break
        chosen.append(path)
    return tuple(chosen)


def _digest_of_stdlib() -> str:
    digest = hashlib.sha256()
    for document in (*documents("train"), *documents("test")):
        digest.update(f"{document.name}\x00{len(document.text)}\x00{document.text}".encode(errors="replace"))
    return digest.hexdigest()
