"""Which weights of a linear layer stay: scores by magnitude, Wanda and RIA, and the masks that they give.

Shapes: W [N, K] (outputs, inputs). A mask is true where a weight stays. Ties go either way, counts are always exact.
"""

from typing import NamedTuple

import torch


class Budget(NamedTuple):
    """How much of a weight goes."""

    ratio: float
    """Share of the weights that become zero, 0 <= ratio < 1."""
    group: tuple[int, int] | None = None
    """(n, m): exactly n of every m inputs in a row stay, and `ratio` is 1 - n / m."""


def wanda_scores(weight_NK: torch.Tensor, importance_K: torch.Tensor) -> torch.Tensor:
    """|W_ij| |X_j|, with the inputs' mean squares `importance_K` (Wanda, arXiv:2306.11695, equation 1)."""
    return weight_NK.abs() * importance_K.sqrt()


def ria_scores(weight_NK: torch.Tensor, importance_K: torch.Tensor, power: float = 0.5) -> torch.Tensor:
    """(|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij|) |X_j|^power: relative importance and activations (RIA, "Plug-and-
    Play", ICLR 2024, equation 4)."""
    size_NK = weight_NK.abs()
    tiny = torch.finfo(size_NK.dtype).tiny
    relative_NK = size_NK / size_NK.sum(0, keepdim=True).clamp(min=tiny)
    relative_NK += size_NK / size_NK.sum(1, keepdim=True).clamp(min=tiny)
    return relative_NK * importance_K.sqrt() ** power


def kept(score_NK: torch.Tensor, budget: Budget, *, by_row: bool = False) -> torch.Tensor:
    """The mask of the largest scores: of the whole matrix, of each row, or of each group of inputs.

    K must be a multiple of m where the budget has groups.
    """
    rows, columns = score_NK.shape
    if budget.group:
        n, m = budget.group
        return _largest(score_NK.reshape(-1, m), n).view(rows, columns)
    compared = score_NK if by_row else score_NK.reshape(1, -1)
    count = compared.shape[1]
    return _largest(compared, count - round(budget.ratio * count)).view(rows, columns)


def _largest(score_RC: torch.Tensor, count: int) -> torch.Tensor:
    """True at the `count` largest of each row."""
    places = score_RC.topk(count, dim=1, sorted=False).indices
    return torch.zeros_like(score_RC, dtype=torch.bool).scatter_(1, places, True)


def outlier_share(scores: list[torch.Tensor], threshold: float) -> float:
    """Share of all Wanda scores of a layer above `threshold` times their mean (OWL, arXiv:2310.05175, equation 1)."""
    count = sum(score.numel() for score in scores)
    mean = sum(float(score.sum(dtype=torch.float64)) for score in scores) / count
    return sum(int((score > threshold * mean).sum()) for score in scores) / count


def owl_ratios(outliers: list[float], ratio: float, spread: float) -> list[float]:
    """A ratio for each layer: fewer weights go where more are outliers, at most `spread` more or fewer than that range
    allows around the mean, which stays `ratio` (OWL, arXiv:2310.05175, section 3)."""
    low, high = min(outliers), max(outliers)
    kept_more = [2 * spread * (one - low) / (high - low) if high > low else 0.0 for one in outliers]
    mean = sum(kept_more) / len(kept_more)
    return [ratio - (one - mean) for one in kept_more]
