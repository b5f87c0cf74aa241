"""Perplexity, KL and agreement of a checkpoint against its source, measured on windows of text."""

from typing import TYPE_CHECKING, Literal

import torch

from optcore.calibration.text import Texts
from optcore.evaluate.divergence import Divergence, divergence
from optcore.evaluate.positions import only, parts
from optcore.evaluate.side_by_side import LayerErrors, Model, SideBySide
from optcore.report import Measurement

if TYPE_CHECKING:
    from optcore.evaluate.fidelity import Fidelity
    from optcore.run import Run


def compare(run: "Run", samples: int, sequence_length: int) -> tuple[dict[Model, Divergence], LayerErrors]:
    """Divergences of `run.checkpoint` from `run.source`, and the relative error after each layer that compares."""
    models = SideBySide(run)
    texts = Texts(run.source, run.calibration, run.data_files)
    tokens_ST = texts.evaluation_windows(samples, sequence_length, models.longest_sequence)
    errors = models.walk([tokens_ST], told=True)
    return divergences(models, tokens_ST), errors


def measure_fidelity(run: "Run", evaluator: "Fidelity") -> list[Measurement]:
    """Rows for perplexity, KL and top-1 agreement; leaves the per-layer errors in the run's results."""
    found, errors = compare(run, evaluator.samples, evaluator.sequence_length)
    run.results["layer_errors"] = errors
    tokens = found["source"].tokens
    note = f"over {tokens} held-out tokens"

    def row(name: str, title: str, unit: str, better: Literal["lower", "higher"], *, of_source: bool) -> Measurement:
        values = {model: getattr(value, name) for model, value in found.items()}
        return Measurement(
            name=name,
            title=title,
            unit=unit,
            source=values["source"] if of_source else None,
            baseline=values.get("baseline"),
            result=values["result"],
            better=better,
            note=note,
        )

    return [
        row("perplexity", "Perplexity", "", "lower", of_source=True),
        row("mean_kl", "KL to the source", "nats/token", "lower", of_source=False),
        row("agreement", "Top-1 agreement with the source", "share", "higher", of_source=False),
    ]


def divergences(
    models: SideBySide, tokens_ST: torch.Tensor, group: int = 0, positions: range | None = None
) -> dict[Model, Divergence]:
    """Every model against the source, after the last layer: on one group of tokens, predicted at some positions."""
    sums = dict.fromkeys(models.models, Divergence())
    shift = int(models.source.is_causal)  # an encoder predicts the token at its own place
    for place, states in models.batches():
        if place.group != group:
            continue
        tokens_BT = tokens_ST[place.rows].to(models.source.device)
        for part in parts(len(tokens_BT), positions or range(tokens_ST.shape[1] - shift)):
            next_BP = tokens_BT[:, part.start + shift : part.stop + shift]
            logits = {model: models.logits(model, only(state, part)) for model, state in states.items()}
            for model, own in logits.items():
                sums[model] = sums[model].plus(divergence(logits["source"], own, next_BP))
    return sums
