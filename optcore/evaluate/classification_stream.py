"""Accuracy, macro F1 and agreement of a classifier and its source, streamed over texts of equal length."""

from typing import TYPE_CHECKING, Literal

import torch

from optcore.errors import BadCheckpoint
from optcore.evaluate.examples import Examples, label_names, load_examples
from optcore.evaluate.side_by_side import Model, SideBySide
from optcore.report import Measurement
from optcore.streaming.decoder import Decoder

if TYPE_CHECKING:
    from optcore.evaluate.classification import Classification
    from optcore.run import Run

Scores = dict[Model, float]


class Confusion:
    """How often a model gave each label to texts of each label: [true, given]."""

    def __init__(self, labels: int) -> None:
        self.counts_LL = torch.zeros(labels, labels, dtype=torch.long)

    def add(self, true_S: torch.Tensor, given_S: torch.Tensor) -> None:
        """Count more texts."""
        ones_S = torch.ones_like(true_S)
        self.counts_LL.index_put_((true_S, given_S), ones_S, accumulate=True)

    @property
    def texts(self) -> int:
        """All that were counted."""
        return int(self.counts_LL.sum())

    @property
    def accuracy(self) -> float:
        """Share of texts with the true label, 0 to 1."""
        return float(self.counts_LL.trace() / self.counts_LL.sum())

    @property
    def macro_f1(self) -> float:
        """Mean F1, 0 to 1, over the labels that occur or were given."""
        right_L = self.counts_LL.diag()
        either_L = self.counts_LL.sum(0) + self.counts_LL.sum(1)
        return float((2 * right_L / either_L)[either_L > 0].mean())


def classify(run: "Run", evaluator: "Classification") -> dict[Model, tuple[Confusion, Confusion]]:
    """For each model its labels against the true ones, and against the source's: nothing is counted there without a
    source that labels texts."""
    models = SideBySide(run)
    numbers_L = _renumbered(models.source, models.result) if models.is_one_task else None
    names = label_names(models.result.model.config)
    examples = load_examples(run, evaluator, names, models.longest_sequence)
    run.results["layer_errors"] = models.walk(examples.tokens, told=True)
    return _confusions(models, examples, len(names), numbers_L)


def measure_classification(run: "Run", evaluator: "Classification") -> list[Measurement]:
    """Rows for accuracy, macro F1 and agreement; leaves the per-layer errors in the run's results."""
    found = classify(run, evaluator)
    note = f"over {found['result'][0].texts} labelled texts"

    def row(name: str, title: str, scores: Scores, better: Literal["higher"] = "higher") -> Measurement:
        return Measurement(
            name=name,
            title=title,
            unit="share",
            source=scores.get("source"),
            baseline=scores.get("baseline"),
            result=scores["result"],
            better=better,
            note=note,
        )

    agreement: Scores = {model: same.accuracy for model, (_, same) in found.items() if model != "source"}
    rows = [
        row("accuracy", "Accuracy", {model: true.accuracy for model, (true, _) in found.items()}),
        row("macro_f1", "Macro F1", {model: true.macro_f1 for model, (true, _) in found.items()}),
    ]
    return [*rows, row("agreement", "The same label as the source", agreement)] if "source" in found else rows


def _confusions(
    models: SideBySide, examples: Examples, labels: int, numbers_L: torch.Tensor | None
) -> dict[Model, tuple[Confusion, Confusion]]:
    """`numbers_L`: the result's numbers of the source's labels, where there is a source."""
    found = {model: (Confusion(labels), Confusion(labels)) for model in models.models}
    for place, states in models.batches():
        true_B = examples.labels[place.group][place.rows]
        given = {model: models.logits(model, state).argmax(-1).cpu() for model, state in states.items()}
        if numbers_L is not None:
            given["source"] = numbers_L[given["source"]]
        for model, (against_true, against_source) in found.items():
            against_true.add(true_B, given[model])
            if "source" in given:
                against_source.add(given["source"], given[model])
    return found


def _renumbered(source: Decoder, result: Decoder) -> torch.Tensor:
    """The result's number of each of the source's labels [L]: another student may have the same ones in another order.

    Where names differ (`LABEL_0` says nothing) they are taken to be in the same order. Raises `BadCheckpoint`.
    """
    before, after = (decoder.model.config.id2label for decoder in (source, result))
    if len(before) != len(after):
        raise BadCheckpoint(f"the result knows {len(after)} labels and the source {len(before)}", field="/chain")
    numbers = {name: number for number, name in after.items()}
    is_same = numbers.keys() == set(before.values())
    return torch.tensor([numbers[before[number]] if is_same else number for number in range(len(before))])
