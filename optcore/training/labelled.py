"""Labelled texts as training windows: one text in each, padded."""

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig

from optcore.calibration.text import filler_of
from optcore.errors import DataError
from optcore.evaluate.examples import draw, label_names, label_number, labels_of
from optcore.sources.texts import Labelled, read_labelled
from optcore.training.windows import BEGINS, PADDING, Batch

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.data import TrainingData

_BATCH_windows = 64
_FIELD = "/chain"


def labelled(run: "Run", tokenizer: Any, data: "TrainingData", length: int, wanted: int) -> Iterator[Batch]:
    """Texts drawn by the seed (files are often sorted by label), as windows [B, length] with their labels [B].

    Labels are numbered as `names_of` says. Raises `DataError`, and `RecipeError` for a model that does not choose one
    of several labels.
    """
    rows = draw(_rows(run, data), wanted, run.seed)
    names = names_of(run, data)
    filler = filler_of(tokenizer)
    left = iter(rows)
    while part := list(islice(left, _BATCH_windows)):
        ids = [tokenizer(row.text, truncation=True, max_length=length)["input_ids"] for row in part]
        labels = torch.tensor([label_number(row.label, names, _FIELD) for row in part])
        yield Batch(*_padded(ids, length, filler), labels)


def names_of(run: "Run", data: "TrainingData") -> dict[int, str]:
    """Names of the labels by number: those of the model that trains; where that has no head for them, those of its
    teacher, or else those that the data has, sorted."""
    for folder in (run.checkpoint, run.teacher):
        if folder and labels_of(folder):
            return label_names(AutoConfig.from_pretrained(folder), _FIELD)
    found = {str(row.label) for row in _rows(run, data)}
    return dict(
        enumerate(sorted(found, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name)))
    )


def _rows(run: "Run", data: "TrainingData") -> Iterator[Labelled]:
    """The stage's own rows, or the recipe's, whose column of texts is the recipe's then too."""
    column = data.column or (None if data.is_own else run.calibration.column)
    try:
        yield from read_labelled(run.text_files, column, data.label)
    except DataError as error:
        error.field = _FIELD
        raise


def _padded(ids: list[list[int]], length: int, filler: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.full((len(ids), length), filler, dtype=torch.long)
    flags = torch.full((len(ids), length), PADDING, dtype=torch.uint8)
    for row, own in enumerate(ids):
        tokens[row, : len(own)] = torch.tensor(own)
        flags[row, : len(own)] = 0
        flags[row, 0] = BEGINS
    return tokens, flags
