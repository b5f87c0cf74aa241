"""Which files of a Hub data set are the text to calibrate on: the `train` split of one subset."""

import re
from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from optcore.errors import DataError

FORMS = (".parquet", ".jsonl", ".jsonl.gz", ".json.gz", ".json", ".csv", ".txt")
"""What we read, best first. A `.json` file counts only when its name says `train`: others hold metadata."""
_TRAIN = {"train", "training"}
_HELD_OUT = {"test", "validation", "valid", "val", "dev", "eval", "evaluation"}
_NO_SUBSET = {"data", *_TRAIN, *_HELD_OUT}
_ABOUT = {"requirements.txt", "license.txt", "readme.txt"}
_SAFE = re.compile(r"^[^/\\\x00]+(/[^/\\\x00]+)*$")


def train_files(paths: Collection[str], card: dict[str, Any], subset: str | None) -> tuple[str, ...]:
    """The files of the training split, in order. `card` is the README's YAML head, whose `configs` decide if present.

    Raises `DataError` for an unknown subset, or when nothing that we read is there.
    """
    readable = sorted(path for path in paths if _is_readable(path))
    subsets = {**_by_folder(readable), **_by_card(readable, card)}
    order = _named_first(card) + sorted(subsets)
    names = [subset] if subset is not None else [name for name in dict.fromkeys(order) if name in subsets]
    for name in names:
        if chosen := _one_form(_train_of(subsets.get(name, ()))):
            return chosen
    raise _nothing(subset, subsets)


def form_of(path: str) -> str:
    """The ending that says how to read a file, empty for none of ours."""
    return next((form for form in FORMS if path.lower().endswith(form)), "")


def _by_card(readable: Sequence[str], card: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for config in _configs(card):
        patterns = [pattern.removeprefix("./") for pattern in _patterns(config)]
        if patterns:
            files = (path for path in readable if any(fnmatchcase(path, pattern) for pattern in patterns))
            found[str(config.get("config_name", "default"))] = tuple(files)
    return found


def _by_folder(readable: Sequence[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for path in readable:
        head = path.split("/")[0] if "/" in path else ""
        name = "default" if not head or head.lower() in _NO_SUBSET else head
        found[name] = (*found.get(name, ()), path)
    return found


def _named_first(card: dict[str, Any]) -> list[str]:
    configs = sorted(_configs(card), key=lambda config: config.get("default") is not True)
    return [str(config.get("config_name", "default")) for config in configs] or ["default"]


def _configs(card: dict[str, Any]) -> list[dict[str, Any]]:
    configs = card.get("configs")
    return [config for config in configs if isinstance(config, dict)] if isinstance(configs, list) else []


def _patterns(config: dict[str, Any]) -> Iterable[str]:
    """Patterns of the training split: the card's `data_files` may be text, a list, or a list by split."""
    files = config.get("data_files") or ([f"{config['data_dir']}/*"] if "data_dir" in config else [])
    for item in files if isinstance(files, list) else [files]:
        if isinstance(item, dict):
            item = item.get("path") if item.get("split") == "train" else None
        for pattern in item if isinstance(item, list) else [item]:
            if isinstance(pattern, str):
                yield pattern


def _train_of(paths: Sequence[str]) -> list[str]:
    named = [path for path in paths if _words(path) & _TRAIN]
    return named or [path for path in paths if not _words(path) & _HELD_OUT and form_of(path) != ".json"]


def _one_form(paths: Sequence[str]) -> tuple[str, ...]:
    for form in FORMS:
        if same := tuple(path for path in paths if form_of(path) == form):
            return same
    return ()


def _is_readable(path: str) -> bool:
    parts = path.split("/")
    safe = bool(_SAFE.match(path)) and ".." not in parts and not any(part.startswith(".") for part in parts)
    return safe and form_of(path) != "" and parts[-1].lower() not in _ABOUT


def _words(path: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", path.lower()))


def _nothing(subset: str | None, subsets: dict[str, tuple[str, ...]]) -> DataError:
    if subset is not None:
        known = ", ".join(sorted(subsets)) or "none"
        message = f"the data set has no training files in subset {subset!r}"
        return DataError(message, remedy=f"subsets with files: {known}", field="/calibration/subset")
    remedy = f"name a data set with a train split in one of: {', '.join(FORMS)}"
    return DataError("the data set has no training files that we read", remedy=remedy, field="/calibration/dataset")
