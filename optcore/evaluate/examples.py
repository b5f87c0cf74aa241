"""Labelled texts as token ids, drawn from a data set and grouped by length, so that none needs padding."""

import hashlib
import heapq
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from transformers import AutoConfig, PretrainedConfig

from optcore.architecture import is_classifier
from optcore.calibration.text import Texts
from optcore.errors import DataError, RecipeError
from optcore.references import Calibration
from optcore.sources.texts import Labelled, read_labelled

if TYPE_CHECKING:
    from optcore.evaluate.classification import Classification
    from optcore.run import Run


_LOOKED_AT_rows = 64


class Examples(NamedTuple):
    """Texts of one length in each group, the shortest first."""

    tokens: list[torch.Tensor]
    """Ids [S, T] by group."""
    labels: list[torch.Tensor]
    """Numbers [S] of the true labels by group."""


def load_examples(run: "Run", evaluator: "Classification", names: Mapping[int, str], longest: int) -> Examples:
    """Draw the evaluator's texts. Raises `DataError` for a label that the model does not know (`names` by number)."""
    rows = labelled_rows(evaluator, run.calibration, run.data_files)
    drawn = draw(rows, evaluator.samples, run.seed)
    if not drawn:
        raise DataError("no labelled text", remedy="name data that has texts and labels", field="/evaluate")
    tokenizer = Texts(run.source, run.calibration, run.data_files).tokenizer
    length = min(evaluator.sequence_length, longest)
    groups: dict[int, list[tuple[list[int], int]]] = {}
    for row in drawn:
        ids = tokenizer(row.text, truncation=True, max_length=length)["input_ids"]
        groups.setdefault(len(ids), []).append((ids, label_number(row.label, names)))
    ordered = [groups[size] for size in sorted(groups)]
    return Examples(
        [torch.tensor([ids for ids, _ in group]) for group in ordered],
        [torch.tensor([label for _, label in group]) for group in ordered],
    )


def check_examples(model: Path, evaluator: "Classification", calibration: Calibration, files: Iterable[Path]) -> None:
    """Read a few rows, so that what is wrong with them is said before any work. Raises `DataError`, `RecipeError`."""
    config = AutoConfig.from_pretrained(model)
    lacks_head = bool(config.architectures) and not is_classifier(config.to_dict())
    names = {} if lacks_head else label_names(config)
    for row in islice(labelled_rows(evaluator, calibration, files), _LOOKED_AT_rows):
        if names:  # a head that is still to be made takes its labels from the training data
            label_number(row.label, names)


def labelled_rows(evaluator: "Classification", calibration: Calibration, files: Iterable[Path]) -> Iterable[Labelled]:
    """The rows of the evaluator's own file, or of the recipe's calibration data."""
    if evaluator.path is not None:
        return read_labelled([Path(evaluator.path)], evaluator.text, evaluator.label)
    return read_labelled(files, evaluator.text or calibration.column, evaluator.label)


def draw(rows: Iterable[Labelled], samples: int, seed: int) -> list[Labelled]:
    """As many rows, chosen by the seed and their places: files are often sorted by label. Holds no more than those."""
    return [row for _, row in heapq.nsmallest(samples, enumerate(rows), key=lambda pair: _hash(seed, pair[0]))]


def label_names(config: PretrainedConfig, field: str = "/evaluate") -> dict[int, str]:
    """Names by number. Raises `RecipeError` for a model that does not choose one of several labels."""
    names: dict[int, str] = config.id2label
    if len(names) < 2 or config.problem_type in ("regression", "multi_label_classification"):
        raise RecipeError(
            "the model does not choose one of several labels, so none of them is the true one",
            remedy="leave labelled texts out of `evaluate` and of training data",
            field=field,
        )
    return names


def labels_of(folder: Path) -> dict[int, str]:
    """Names by number of the labels of a classifier; none of another model."""
    config = AutoConfig.from_pretrained(folder)
    return dict(sorted(config.id2label.items())) if is_classifier(config.to_dict()) else {}


def label_number(label: int | str, names: Mapping[int, str], field: str = "/evaluate") -> int:
    """The number of a label given by name or number. Raises `DataError` for one that the model does not know.

    Of a model whose names are other numbers (stars from 1 to 5), numbers are names: a file does not say which it means,
    and CSV has no numbers at all.
    """
    numbers = {name: number for number, name in names.items()}
    if not any(_is_number(name) and name != str(number) for number, name in names.items()):
        numbers = {str(number): number for number in names} | numbers
    if str(label) not in numbers:
        known = ", ".join(f"{number} ({name})" for number, name in sorted(names.items())[:10])
        raise DataError(
            f"the data has the label {label!r}, which the model does not know",
            remedy=f"name the column of the labels in `label`; the model's are {known}",
            field=field,
        )
    return numbers[str(label)]


def _is_number(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def _hash(seed: int, place: int) -> bytes:
    return hashlib.sha256(f"{seed} {place}".encode()).digest()
