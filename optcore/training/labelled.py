"""Labelled texts as training windows: one text in each, padded."""

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig

from optcore.calibration.text import filler_of
from optcore.evaluate.examples import draw, label_names, label_number
from optcore.sources import read_labelled
from optcore.training.windows import BEGINS, PADDING, Batch

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.data import TrainingData

_BATCH_windows = 64


def labelled(run: "Run", tokenizer: Any, data: "TrainingData", length: int, wanted: int) -> Iterator[Batch]:
    """Texts drawn by the seed (files are often sorted by label), as windows [B, length] with their labels [B].

    Labels are numbered as the model does; a model without a head for them, in the order of `labels_of`. Raises
    `DataError`.
    """
    rows = draw(read_labelled(run.text_files, data.column, data.label), wanted, run.seed)
    names = names_of(run, data)
    filler = filler_of(tokenizer)
    left = iter(rows)
    while part := list(islice(left, _BATCH_windows)):
        ids = [tokenizer(row.text, truncation=True, max_length=length)["input_ids"] for row in part]
        labels = torch.tensor([label_number(row.label, names) for row in part])
        yield Batch(*_padded(ids, length, filler), labels)


def names_of(run: "Run", data: "TrainingData") -> dict[int, str]:
    """Names of the labels by number: the classifier's, or for a model that is none, those that the data has, sorted."""
    from optcore.architecture import is_classifier

    config = AutoConfig.from_pretrained(run.checkpoint)
    if is_classifier(config.to_dict()):
        return label_names(config)
    found = {str(row.label) for row in read_labelled(run.text_files, data.column, data.label)}
    return dict(
        enumerate(sorted(found, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name)))
    )


def _padded(ids: list[list[int]], length: int, filler: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.full((len(ids), length), filler, dtype=torch.long)
    flags = torch.full((len(ids), length), PADDING, dtype=torch.uint8)
    for row, own in enumerate(ids):
        tokens[row, : len(own)] = torch.tensor(own)
        flags[row, : len(own)] = 0
        flags[row, 0] = BEGINS
    return tokens, flags
