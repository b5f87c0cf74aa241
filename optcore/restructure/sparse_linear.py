"""One linear layer made sparse by the method that the recipe names, or by magnitude where too little was measured."""

from typing import TYPE_CHECKING

import torch

from optcore.algorithms.alps import alps
from optcore.algorithms.sparsegpt import sparsegpt
from optcore.algorithms.sparsity import Budget, kept, ria_scores, wanda_scores
from optcore.calibration.statistics import InputStatistics

if TYPE_CHECKING:
    from optcore.techniques.sparsify import Sparsify

_LEAST_tokens = 0.25
"""Calibration tokens for each input channel below which what was measured says too little: a rarely used expert."""


def sparsified(
    weight_NK: torch.Tensor,
    statistics: InputStatistics,
    budget: Budget,
    technique: "Sparsify",
    generator: torch.Generator,
) -> tuple[torch.Tensor, str]:
    """The sparse weight, float32, and why magnitude was used instead of what was asked for; empty where it was not."""
    if budget.ratio == 0:
        return weight_NK, ""
    if technique.method == "magnitude":
        return weight_NK * kept(weight_NK.abs(), budget), ""
    if technique.method == "random":
        score_NK = torch.rand(weight_NK.shape, generator=generator).to(weight_NK.device)
        return weight_NK * kept(score_NK, budget), ""
    found, why = _measured(weight_NK, statistics, budget, technique)
    return (weight_NK * kept(weight_NK.abs(), budget), why) if found is None else (found, "")


def _measured(
    weight_NK: torch.Tensor, statistics: InputStatistics, budget: Budget, technique: "Sparsify"
) -> tuple[torch.Tensor | None, str]:
    tokens, inputs = statistics.tokens, weight_NK.shape[1]
    gram_KK = statistics.gram_KK
    if gram_KK is None or tokens < _LEAST_tokens * inputs:
        return None, f"{tokens} calibration tokens reached its {inputs} inputs"
    gram_KK = gram_KK.to(weight_NK.device)
    if not gram_KK.isfinite().all():
        return None, "its inputs were not finite"
    if technique.method in ("wanda", "ria"):
        scores = wanda_scores if technique.method == "wanda" else ria_scores
        return weight_NK * kept(scores(weight_NK, gram_KK.diagonal()), budget, by_row=True), ""
    if technique.method == "alps":
        found = alps(weight_NK, gram_KK, budget, damping=technique.damping)
    else:
        found = sparsegpt(weight_NK, gram_KK, budget, damping=technique.damping, block=technique.block)
    return found, "the second moments of its inputs could not be factored"
