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
    """For each model its labels against the true ones, and against the source's."""
    models = SideBySide(run)
    if models.is_one_task:
        _check_labels(models.source, models.result)
    names = label_names(models.result.model.config)
    examples = load_examples(run, evaluator, names, models.longest_sequence)
    run.results["layer_errors"] = models.walk(examples.tokens)
    return _confusions(models, examples, len(names))


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


def _confusions(models: SideBySide, examples: Examples, labels: int) -> dict[Model, tuple[Confusion, Confusion]]:
    found = {model: (Confusion(labels), Confusion(labels)) for model in models.models}
    for place, states in models.batches():
        true_B = examples.labels[place.group][place.rows]
        given = {model: models.logits(model, state).argmax(-1).cpu() for model, state in states.items()}
        for model, (against_true, against_source) in found.items():
            against_true.add(true_B, given[model])
            against_source.add(given.get("source", given["result"]), given[model])
    return found


def _check_labels(source: Decoder, result: Decoder) -> None:
    before, after = (decoder.model.config.num_labels for decoder in (source, result))
    if before != after:
        raise BadCheckpoint(f"the result knows {after} labels and the source {before}", field="/chain")
