"""A checkpoint folder: is everything there, whole, and inside?"""

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from optcore.errors import BadCheckpoint, SourceNotFound, UnsafeCheckpoint
from optcore.forms import FORMS
from optcore.sizes import MAX_HEADER_bytes
from optcore.sources.checkpoint_files import CONFIG, INDEX, MATTERS, SINGLE, TOKENIZERS, require_files, weights_form

ROOTS_VARIABLE = "LATHE_MODEL_ROOTS"
_MIB = 2**20
_LARGEST_bytes = {CONFIG: 4 * _MIB, INDEX: 32 * _MIB}
"""Parsed JSON takes up to forty times its size in memory. Published indices reach a quarter of this."""
_LARGEST_beside_bytes = 128 * _MIB
"""Any other file beside the weights; the largest published tokenizers are a third of it."""


def is_allowed(path: Path) -> bool:
    """Whether a path lies below a folder of `LATHE_MODEL_ROOTS`; set but empty allows none, unset allows all."""
    roots = os.environ.get(ROOTS_VARIABLE)
    if roots is None:
        return True
    return any(path.resolve().is_relative_to(Path(root).resolve()) for root in roots.split(":") if root)


def require_folder(path: Path, field: str) -> None:
    """Raise `UnsafeCheckpoint` outside the allowed roots (whether it exists or not), `SourceNotFound` when absent."""
    if not is_allowed(path):
        remedy = f"ask the operator to add its parent to {ROOTS_VARIABLE}, or name a Hub repository"
        raise UnsafeCheckpoint(f"{path} is outside the folders that models may come from", remedy=remedy, field=field)
    if not path.is_dir():
        remedy = "give a checkpoint folder on the machine that runs the engine"
        raise SourceNotFound(f"there is no folder {path}", remedy=remedy, field=field)


def check_checkpoint(folder: Path, field: str) -> tuple[str, ...]:
    """Names of the files that matter, relative to the folder, after checking that all are there, whole and inside.

    Raises `UnsafeCheckpoint` and `BadCheckpoint`.
    """
    names = _names(folder)
    weights_form(names, str(folder), field)
    require_files(names, str(folder), field)
    _require_plain(names, field)
    return check_weights(folder, [name for name in MATTERS if name in names], field)


def check_weights(folder: Path, beside: Sequence[str], field: str) -> tuple[str, ...]:
    """Names of the weights' files, their index and what lies beside them, all there, whole, readable and inside.

    Raises `UnsafeCheckpoint` and `BadCheckpoint`.
    """
    form = weights_form(_names(folder), str(folder), field)
    weights = shards_of(folder, field) if form == INDEX else (SINGLE,)
    for name in (*beside, form, *weights):
        _require_inside(folder, name, field)
    for name in beside:
        _require_readable(folder / name, field)
    for name in weights:
        _require_whole(folder / name, field)
    return tuple(sorted({*beside, form, *weights}))


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file() or path.is_symlink()}


def _require_plain(names: Collection[str], field: str) -> None:
    """No job takes over a form of weights, or a way to run the model, that another one left: nothing would keep it."""
    if found := next((name for name in FORMS if name in names), None):
        raise BadCheckpoint(
            f"{found} says of which form these weights are or how they are run, and a job begins with a plain model",
            remedy="put both jobs' entries into one chain, or remove the file to take the weights as plain",
            field=field,
        )


def shards_of(folder: Path, field: str) -> tuple[str, ...]:
    """The weight files that the index names. Raises `UnsafeCheckpoint` for a name that leaves the folder."""
    _require_inside(folder, INDEX, field)
    weight_map = read_object(folder / INDEX, field).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(n, str) for n in weight_map.values()):
        raise BadCheckpoint(f"{INDEX} has no weight_map", remedy="save the model again", field=field)
    shards = tuple(sorted(set(weight_map.values())))
    for shard in shards:
        if PurePosixPath(shard).is_absolute() or ".." in shard.split("/") or "\\" in shard or "\x00" in shard:
            raise UnsafeCheckpoint(f"{INDEX} names {shard!r}, outside the folder", remedy=_DISTRUST, field=field)
        if not shard.endswith(".safetensors"):
            raise UnsafeCheckpoint(f"{INDEX} names {shard!r}, not safetensors", remedy=_DISTRUST, field=field)
    return shards


_DISTRUST = "use a copy from a source that you trust"


def read_object(path: Path, field: str) -> dict[str, Any]:
    """A JSON object. Raises `BadCheckpoint`, also for one that is too large to be read safely."""
    _require_size(path, field)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{path.name} is not JSON: {error}", remedy="download it again", field=field) from error
    if not isinstance(document, dict):
        raise BadCheckpoint(f"{path.name} is not a JSON object", remedy="download it again", field=field)
    return document


def _require_size(path: Path, field: str) -> None:
    """Raise `BadCheckpoint` for a file beside the weights that is larger than any of its kind."""
    size, most = path.stat().st_size, _LARGEST_bytes.get(path.name, _LARGEST_beside_bytes)
    if size > most:
        message = f"{path.name} has {size} bytes, and {most} is the most that is read"
        raise BadCheckpoint(message, remedy=_DISTRUST, field=field)


def _require_readable(path: Path, field: str) -> None:
    """What will be read as a whole must be no bomb: neither large nor deep."""
    if path.suffix == ".json" and path.name not in TOKENIZERS:
        read_object(path, field)
    else:  # the tokenizer's own parser has a limit of depth
        _require_size(path, field)


def _require_inside(folder: Path, name: str, field: str) -> None:
    target = (folder / name).resolve()
    if not any(target.is_relative_to(home) for home in _homes(folder.resolve())):
        raise UnsafeCheckpoint(f"{name} is a link that leaves the folder", remedy=_DISTRUST, field=field)
    if not target.is_file():
        remedy = "download or copy the model again"
        raise BadCheckpoint(f"{name} is missing in {folder}", remedy=remedy, field=field)


def _homes(folder: Path) -> tuple[Path, ...]:
    """The folder; for a snapshot in the Hub client's cache, also the blobs that its links lead to."""
    return (folder, folder.parent.parent / "blobs") if folder.parent.name == "snapshots" else (folder,)


def _require_whole(path: Path, field: str) -> None:
    if not _is_whole(path):
        message = f"{path.name} is cut or damaged ({path.stat().st_size} bytes)"
        raise BadCheckpoint(message, remedy="download or copy the model again", field=field)


def _is_whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header announces: eight bytes of length, JSON, then the tensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER_bytes, size - 8):
            return False
        text = file.read(length)
    try:
        header = json.loads(text)
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        return bool(size == 8 + length + max(ends, default=0))
    except (ValueError, RecursionError, AttributeError, KeyError, IndexError, TypeError):
        return False  # not a header
