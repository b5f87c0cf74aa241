"""Scales by the smallest squared rounding error, out of a bounded number of candidates.

Shapes: values [R, G, g] as `blocks` gives them, a choice [R, G]; where one scale serves the tensor, a choice is [1, 1].
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch

from optcore.algorithms.blocks import blocks, importance_blocks
from optcore.algorithms.rounding import Grid, code_range, divided, grid_of, scale_reach
from optcore.algorithms.storage import Storage
from optcore.schemes import QuantArgs

# Multiples of the max scale that the search tries. Below 1 clips the largest value to refine the rest; above 1 helps
# floating-point grids, whose error depends on where in a binade the values fall.
_INT_FACTORS = tuple(0.40 + 0.02 * i for i in range(34))
_INT8_FACTORS = tuple(0.80 + 0.0075 * i for i in range(27))
_FLOAT_FACTORS = tuple(0.70 + 0.02 * i for i in range(31))
# Shrinking of the two ends of an asymmetric range, alone and together.
_ENDS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
_PAIRS = (
    *((low, high) for low in _ENDS for high in _ENDS if abs(low - high) < 0.35),
    *((both, both) for both in (0.95, 0.85, 0.75, 0.65, 0.55, 0.45)),
)
_PART_values = 2**18
_CLIPPED = 1e-4  # the share of values that `percentile` gives up at each end

Method = Literal["max", "percentile", "mse", "hessian"]


class Choice(NamedTuple):
    """Scales as stored, and zero points of asymmetric formats."""

    stored: torch.Tensor
    zero: torch.Tensor | None = None


class Objective(NamedTuple):
    """What a choice is judged by: the squared error of every block, inputs weighted by their importance."""

    values: torch.Tensor
    importance: torch.Tensor | None
    """[1, 1 or G, g]"""
    storage: Storage
    args: QuantArgs

    def error(self, choice: Choice) -> torch.Tensor:
        """Per scale; float32. A part at a time: the temporaries of a large weight would outweigh it several times."""
        grid, step = grid_of(self.args), self.storage.step(choice.stored).unsqueeze(-1)
        zero = None if choice.zero is None else choice.zero.float().unsqueeze(-1)
        rows = max(1, _PART_values // max(1, self.values[0].numel()))
        parts = [slice(start, start + rows) for start in range(0, len(self.values), rows)]
        joined = torch.cat(
            [self._part(self.values[p], _rows(step, p), None if zero is None else _rows(zero, p), grid) for p in parts]
        )
        return joined.sum().reshape(1, 1) if self.args.strategy == "tensor" else joined

    def _part(self, values: torch.Tensor, step: torch.Tensor, zero: torch.Tensor | None, grid: Grid) -> torch.Tensor:
        scaled = values / step
        if zero is None:
            error = (grid.round(scaled) * step).sub_(values).square_()
        else:
            error = (grid.round(scaled + zero).sub_(zero) * step).sub_(values).square_()
        return error.sum(-1) if self.importance is None else (error * self.importance).sum(-1)


def objective_of(
    weight_NK: torch.Tensor, importance_K: torch.Tensor | None, storage: Storage, args: QuantArgs
) -> Objective:
    """What the scales of a weight (float32) are judged by."""
    importance = None if importance_K is None else importance_blocks(importance_K.float(), args)
    return Objective(blocks(weight_NK, args), importance, storage, args)


def choose(objective: Objective, method: Method) -> Choice:
    """Scales by plain ends or by search; what weighs errors in a search is the objective's importance."""
    args, storage = objective.args, objective.storage
    low, high = ends(objective.values, args, method)
    if args.symmetric:
        amax = torch.maximum(-low, high)
        # By a tensor: by a number, torch divides on a CPU and multiplies by the inverse on a GPU.
        plain = Choice(storage.store(amax / amax.new_full((), scale_reach(args))))
    else:
        plain = asymmetric(storage, args.bits, low, high)
    return search(objective, plain, low, high) if method in ("mse", "hessian") else plain


def ends(values: torch.Tensor, args: QuantArgs, method: Method) -> tuple[torch.Tensor, torch.Tensor]:
    """Lowest and highest value per scale, zero included; without the outermost share for `percentile`."""
    if args.strategy == "tensor":
        values = values.reshape(1, 1, -1)
    spare = int(values.shape[-1] * _CLIPPED) if method == "percentile" else 0
    if spare:
        high = values.topk(spare + 1).values[..., -1]
        low = values.topk(spare + 1, largest=False).values[..., -1]
    else:
        low, high = values.amin(-1), values.amax(-1)
    return low.clamp(max=0), high.clamp(min=0)


def search(objective: Objective, plain: Choice, low: torch.Tensor, high: torch.Tensor) -> Choice:
    """The best choice per scale; ties keep the plain one. `low` and `high` are the ends of each block's values."""
    best, best_error = plain, objective.error(plain)
    for candidate in _candidates(objective, plain, low, high):
        error = objective.error(candidate)
        better = error < best_error
        best = _where(better, candidate, best)
        best_error = torch.where(better, error, best_error)
    return best


def _where(better: torch.Tensor, candidate: Choice, best: Choice) -> Choice:
    stored = torch.where(better, candidate.stored, best.stored)
    if candidate.zero is None or best.zero is None:
        return Choice(stored)
    return Choice(stored, torch.where(better, candidate.zero, best.zero))


def asymmetric(storage: Storage, bits: int, low: torch.Tensor, high: torch.Tensor) -> Choice:
    """The scale and zero point that map [low, high], which holds 0, onto the codes."""
    first, last = code_range(bits)
    stored = storage.store(divided(high - low, last - first))
    zero = (first - low / storage.step(stored)).round().clamp(first, last)
    return Choice(stored, torch.where(high == low, 0, zero).to(torch.int8))


def _candidates(objective: Objective, plain: Choice, low: torch.Tensor, high: torch.Tensor) -> Iterator[Choice]:
    storage, args = objective.storage, objective.args
    if not args.symmetric:
        yield from (asymmetric(storage, args.bits, low * a, high * b) for a, b in _PAIRS)
    elif storage.neighbours:
        codes = plain.stored.to(torch.int16)
        for offset in storage.neighbours:
            yield Choice((codes + offset).clamp(*storage.codes).to(plain.stored.dtype))
    else:
        step = storage.step(plain.stored)
        for factor in factors(args):
            yield Choice(storage.store(step * factor * _sign(args, low, high)))


def factors(args: QuantArgs) -> tuple[float, ...]:
    """Multiples of the plain scale that are tried where scales are not codes of a coarse format."""
    if args.type == "int":
        return _INT_FACTORS if args.bits < 8 else _INT8_FACTORS
    return _FLOAT_FACTORS


def signs(args: QuantArgs) -> bool:
    """Whether candidates may be negative."""
    return args.type == "int" and args.bits <= 4


def _sign(args: QuantArgs, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor | float:
    """Negative scales put the largest magnitude on the lowest code, which has no positive twin (-8 where 7 is the
    highest): with few codes that is worth a sixteenth of the range."""
    if not signs(args):
        return 1.0
    return torch.where(high > -low, -1.0, 1.0)


def _rows(per_scale: torch.Tensor, part: slice) -> torch.Tensor:
    """The scales of some rows; one for the whole tensor is everyone's."""
    return per_scale if len(per_scale) == 1 else per_scale[part]
