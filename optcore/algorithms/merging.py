"""Tensors of several models made into one. All take and give floating-point tensors of one shape."""

from collections.abc import Sequence

import numpy as np
import torch

_COLLINEAR = 0.9995
"""Cosine beyond which an arc is as good as straight, and its formula divides by almost zero."""


def linear(tensors: Sequence[torch.Tensor], weights: Sequence[float], normalize: bool) -> torch.Tensor:
    """The weighted sum, divided by the sum of weights if `normalize` (arXiv:2203.05482)."""
    total = _weighted(tensors, weights)
    return total / sum(weights) if normalize else total


def slerp(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    """The point at `t` (0: a, 1: b) of the arc between two flattened tensors (Shoemake 1985, SIGGRAPH 19(3)).

    sin((1-t)θ)/sin θ a + sin(tθ)/sin θ b, θ the angle between them; a straight line where |cos θ| > 0.9995 or one of
    them is zero, so that there is no angle.
    """
    norms = [float(torch.linalg.vector_norm(each)) for each in (a, b)]
    if not all(norms):
        return (1 - t) * a + t * b
    cosine = torch.dot((a / norms[0]).flatten(), (b / norms[1]).flatten()).clamp(-1, 1)
    if cosine.abs() > _COLLINEAR:
        return (1 - t) * a + t * b
    angle = torch.acos(cosine)
    return torch.sin((1 - t) * angle) / torch.sin(angle) * a + torch.sin(t * angle) / torch.sin(angle) * b


def summed(deltas: Sequence[torch.Tensor], weights: Sequence[float], normalize: bool) -> torch.Tensor:
    """Task vectors added (arXiv:2212.04089), divided by the sum of weights if `normalize`."""
    return linear(deltas, weights, normalize)


def agreed(deltas: Sequence[torch.Tensor], weights: Sequence[float], normalize: bool) -> torch.Tensor:
    """Elect a sign for each parameter, and merge those deltas only that have it (arXiv:2306.01708, section 3).

    The sign is that of the weighted sum; where deltas cancel out it is positive, as mergekit has it (the paper's own
    code asks the majority of the whole vector). The mean of those that agree, by their weights, if `normalize`; else
    their sum.
    """
    sign = torch.where(_weighted(deltas, weights) < 0, -1, 1)
    total, divisor = torch.zeros_like(deltas[0]), torch.zeros_like(deltas[0])
    for delta, weight in zip(deltas, weights, strict=True):
        agrees = torch.sign(weight * delta) == sign
        total += torch.where(agrees, weight * delta, 0)
        divisor += weight * agrees
    cancelled = divisor.abs() < 1e-6 * sum(map(abs, weights))  # weights that sum to zero but for their rounding
    return total / torch.where(cancelled, 1, divisor) if normalize else total


def trimmed(delta: torch.Tensor, density: float) -> torch.Tensor:
    """The share `density` of largest magnitude, all else zero (arXiv:2306.01708, section 3); at least one is kept.

    Of equal ones at the edge, the first are kept, so that the share is exact.
    """
    count = max(1, round(density * delta.numel()))
    if count >= delta.numel():
        return delta
    magnitude = delta.abs().flatten()
    place = delta.numel() - count
    edge = float(np.partition(magnitude.numpy(), place)[place])
    kept = magnitude >= edge
    surplus = int(kept.sum()) - count
    if surplus:
        kept[(magnitude == edge).nonzero().flatten()[-surplus:]] = False
    return torch.where(kept.view(delta.shape), delta, 0)


def dropped(delta: torch.Tensor, density: float, seed: int) -> torch.Tensor:
    """Each element kept with probability `density` and divided by it, else zero (arXiv:2311.03099, equation 3)."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(delta.shape, generator=generator) < density
    return torch.where(kept, delta / density, 0)


def _weighted(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    total = weights[0] * tensors[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total = total + weight * tensor
    return total
