"""Rounding a layer's weight so that its output changes least: GPTQ, then coordinate descent and refitted scales.

Shapes: W [N, K] (outputs, inputs), H = X^T X / tokens [K, K] of the inputs X that the rounded layer will see. The loss
of Q against a target T is tr((T - Q) H (T - Q)^T): the squared change of the output, summed over outputs, per token.
Inside, matrices are transposed, in rounding order, and of all experts of a batch: [E, K, N].
"""

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import NamedTuple

import torch

from optcore.algorithms.factor import coupling, damped, factored, revived
from optcore.algorithms.gptq_descent import descend
from optcore.algorithms.gptq_refit import can_refit, refit
from optcore.algorithms.lattice import Lattice, lattice
from optcore.algorithms.scales import Scales
from optcore.schemes import QuantArgs
from optcore.techniques.options import Gptq


class Rounded(NamedTuple):
    """A weight on its format's lattice."""

    weight_NK: torch.Tensor
    """Dequantized, float32: bit for bit what its codes decode to with `scales`."""
    scales: Scales
    """As given, or refitted to the codes."""
    loss: float
    """tr((T - Q) H (T - Q)^T); NaN where H is not finite."""
    nearest_loss: float
    """The same of every weight's nearest value at the scales that were given."""
    damping: float | None
    """Added to H's diagonal, as a share of its mean. None: H could not be used, the weight is plainly rounded."""


def gptq(
    weight_NK: torch.Tensor,
    gram_KK: torch.Tensor,
    scales: Scales,
    args: QuantArgs,
    options: Gptq,
    cross_KK: torch.Tensor | None = None,
) -> Rounded:
    """Round one weight, float32. `cross_KK` = X^T X_original / tokens is needed where `options.asymmetry` is not 0.

    An input that never occurred (a zero on H's diagonal) is plainly rounded. So is a weight whose H cannot be factored
    at any damping, and every output that would otherwise end worse than plainly rounded.
    """
    crosses = None if cross_KK is None else [cross_KK]
    return gptq_batch([weight_NK], [gram_KK], [scales], args, options, crosses)[0]


def gptq_batch(
    weight_ENK: Iterable[torch.Tensor],
    gram_EKK: Iterable[torch.Tensor],
    scales: Sequence[Scales],
    args: QuantArgs,
    options: Gptq,
    cross_EKK: Iterable[torch.Tensor] | None = None,
    pull_E: Sequence[float] | None = None,
    *,
    apart: bool = False,
) -> list[Rounded]:
    """Round weights of one shape, each with its own H, together: the experts of a layer, or what shares an input.

    An H that several are given, as one tensor, is factored once. `pull_E` is each weight's asymmetry, where that is not
    the one of the options: all are zero, or none. `apart` takes products of one matrix at a time, whose last bits are
    those of a weight alone; a library's batched product adds up in an order of its own.
    """
    pull_E = [options.asymmetry or 0.0] * len(scales) if pull_E is None else pull_E
    if any(pull_E) and cross_EKK is None:
        raise ValueError("an asymmetric target needs the cross Gram matrix of rounded and original inputs")
    places_E, grams = _distinct(gram_EKK)
    hessians = _hessians(grams, options)
    crosses = repeat(None) if cross_EKK is None or not any(pull_E) else cross_EKK
    problems = [
        _Problem(weight_NK.float(), place, hessians.gram_UKK[place], hessians.order_UK[place], own, args, *target)
        for weight_NK, place, own, *target in zip(weight_ENK, places_E, scales, crosses, pull_E, strict=False)
    ]
    damping_E = [hessians.damping_U[place] for place in places_E]
    made = {e: problem.nearest() for e, problem in enumerate(problems) if damping_E[e] is None}
    usable = [e for e in range(len(problems)) if e not in made]
    at_once = 1 if apart else len(problems)
    for start in range(0, len(usable), at_once):
        batch = usable[start : start + at_once]
        made |= zip(batch, _solve([problems[e] for e in batch], hessians, options), strict=True)
    return _told([made[e] for e in range(len(problems))], damping_E)


class _Hessians(NamedTuple):
    """What the weights of a batch are rounded by, each matrix once."""

    gram_UKK: torch.Tensor
    order_UK: torch.Tensor
    feedback_UKK: torch.Tensor
    damping_U: list[float | None]


def _hessians(grams: Sequence[torch.Tensor], options: Gptq) -> _Hessians:
    gram_UKK = (grams[0].unsqueeze(0) if len(grams) == 1 else torch.stack(list(grams))).float()
    order_UK = _order(gram_UKK, options)
    return _Hessians(gram_UKK, order_UK, *factored(_permuted(revived(gram_UKK), order_UK), options.damping))


def _distinct(matrices: Iterable[torch.Tensor]) -> tuple[list[int], list[torch.Tensor]]:
    """Which of the distinct matrices each of these is, and those."""
    listed = list(matrices)
    distinct = {id(matrix): matrix for matrix in listed}
    place = {key: number for number, key in enumerate(distinct)}
    return [place[id(matrix)] for matrix in listed], list(distinct.values())


def _among(matrices_U: torch.Tensor, places: Sequence[int]) -> torch.Tensor:
    """Some of them, perhaps one several times; by views where that goes: an index of numbers would make a GPU wait."""
    if len(set(places)) == 1:
        return matrices_U[places[0]].expand(len(places), *matrices_U.shape[1:])
    if list(places) == list(range(len(matrices_U))):
        return matrices_U
    return torch.stack([matrices_U[place] for place in places])


class _Made(NamedTuple):
    """One weight rounded, its losses still on the device."""

    weight_NK: torch.Tensor
    scales: Scales
    loss: torch.Tensor
    nearest_loss: torch.Tensor


def _told(made_E: Sequence[_Made], damping_E: Sequence[float | None]) -> list[Rounded]:
    """With the losses of all as numbers: the only wait for the device after the factors are made."""
    losses_E2 = torch.stack([torch.stack([one.loss, one.nearest_loss]) for one in made_E]).tolist()
    parts = zip(made_E, losses_E2, damping_E, strict=True)
    return [
        Rounded(one.weight_NK, one.scales, loss, nearest_loss, damping) for one, (loss, nearest_loss), damping in parts
    ]


class _Problem(NamedTuple):
    """One weight to be rounded."""

    weight_NK: torch.Tensor
    place: int
    """Of its Hessian among those of the batch."""
    gram_KK: torch.Tensor
    order_K: torch.Tensor
    scales: Scales
    args: QuantArgs
    cross_KK: torch.Tensor | None
    pull: float

    def points(self, scales: Scales) -> Lattice:
        rows, columns = self.weight_NK.shape
        return lattice(scales, self.args, (rows, columns))

    def nearest(self) -> _Made:
        nearest_NK = self.points(self.scales).nearest(self.weight_NK)
        loss = _losses(self.weight_NK, nearest_NK, self.gram_KK).sum()
        return _Made(nearest_NK, self.scales, loss, loss)

    def finished(self, target_KN: torch.Tensor, rounded_KN: torch.Tensor, scales: Scales) -> _Made:
        """Back in the weight's order; outputs that plain rounding serves better take that, and its scales."""
        place_K = self.order_K.argsort()
        target_NK, rounded_NK = target_KN[place_K].mT, rounded_KN[place_K].mT
        nearest_NK = self.points(self.scales).nearest(self.weight_NK)
        loss_N = _losses(target_NK, rounded_NK, self.gram_KK)
        nearest_loss_N = _losses(target_NK, nearest_NK, self.gram_KK)
        worse_N1 = (loss_N > nearest_loss_N).unsqueeze(1)
        if scales is not self.scales:
            scales = scales._replace(scale=torch.where(worse_N1, self.scales.scale, scales.scale))
        # Once more through the lattice: the bits of decoding, whatever the arithmetic on the way.
        weight_NK = self.points(scales).nearest(torch.where(worse_N1, nearest_NK, rounded_NK))
        return _Made(weight_NK, scales, torch.minimum(loss_N, nearest_loss_N).sum(), nearest_loss_N.sum())


def _solve(problems: Sequence[_Problem], hessians: _Hessians, options: Gptq) -> list[_Made]:
    places = [problem.place for problem in problems]
    gram_EKK = _permuted(_among(hessians.gram_UKK, places), _among(hessians.order_UK, places))
    feedback_EKK = _among(hessians.feedback_UKK, places)
    weight_EKN = torch.stack([problem.weight_NK.mT[problem.order_K] for problem in problems])
    target_EKN = weight_EKN
    if problems[0].cross_KK is not None:
        each = zip(problems, weight_EKN, gram_EKK, strict=True)
        target_EKN = torch.stack([_shifted(*parts, hessians.damping_U[parts[0].place] or 0.0) for parts in each])
    rounded_EKN = target_EKN.clone()
    scales = [problem.scales for problem in problems]
    points = _points(problems, scales)
    descend(target_EKN, rounded_EKN, feedback_EKK, points, causal=True)
    coupling_EKK = coupling(revived(gram_EKK)) if options.sweeps else feedback_EKK
    for _ in range(options.sweeps):
        if options.refit and can_refit(problems[0].args):
            scales = [
                refit(target_EKN[e], rounded_EKN[e], gram_EKK[e], problem.order_K, scales[e])
                for e, problem in enumerate(problems)
            ]
            points = _points(problems, scales)
        descend(target_EKN, rounded_EKN, coupling_EKK, points, causal=False)
    parts = zip(problems, target_EKN, rounded_EKN, scales, strict=True)
    return [problem.finished(target_KN, rounded_KN, fitted) for problem, target_KN, rounded_KN, fitted in parts]


def _points(problems: Sequence[_Problem], scales: Sequence[Scales]) -> Lattice:
    """The lattices of all problems as one, transposed and in rounding order."""
    each = [problem.points(own).columns(problem.order_K) for problem, own in zip(problems, scales, strict=True)]
    steps = torch.stack([one.step_NK.mT for one in each])
    zeros = [one.zero_NK.mT for one in each if one.zero_NK is not None]
    offsets = [one.offset_NK.mT for one in each if one.offset_NK is not None]
    stacked = [torch.stack(matrices) if matrices else None for matrices in (zeros, offsets)]
    return Lattice(steps, stacked[0], each[0].grid, stacked[1])


def _shifted(problem: _Problem, weight_KN: torch.Tensor, gram_KK: torch.Tensor, damping: float) -> torch.Tensor:
    """T with H T^T = ((1 - a) H + a G) W^T, G = X^T X_original / tokens: the least-squares weight whose output on the
    rounded model's inputs is nearest to (1 - a) X W^T + a X_original W^T (GPTAQ, arXiv:2504.02692, damped)."""
    assert problem.cross_KK is not None
    cross_KK = _permuted(problem.cross_KK.float(), problem.order_K)
    firm_KK = damped(revived(gram_KK), damping)
    pull_KN = problem.pull * (cross_KK - gram_KK) @ weight_KN
    return weight_KN + torch.cholesky_solve(pull_KN, torch.linalg.cholesky(firm_KK))


def _order(gram_EKK: torch.Tensor, options: Gptq) -> torch.Tensor:
    """Largest diagonal first, where asked: those errors are then spread over the most other columns."""
    diagonal_EK = gram_EKK.diagonal(dim1=-2, dim2=-1)
    if options.act_order:
        return diagonal_EK.argsort(dim=-1, descending=True, stable=True)
    return torch.arange(diagonal_EK.shape[1], device=diagonal_EK.device).expand_as(diagonal_EK)


def _permuted(gram_EKK: torch.Tensor, order_EK: torch.Tensor) -> torch.Tensor:
    rows_EKK = torch.take_along_dim(gram_EKK, order_EK.unsqueeze(-1), -2)
    return torch.take_along_dim(rows_EKK, order_EK.unsqueeze(-2), -1)


def _losses(target_NK: torch.Tensor, rounded_NK: torch.Tensor, gram_KK: torch.Tensor) -> torch.Tensor:
    """tr((T - Q) H (T - Q)^T), output by output [N]."""
    difference_NK = target_NK - rounded_NK
    return (difference_NK @ gram_KK * difference_NK).sum(1)
