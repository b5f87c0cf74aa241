"""Scales by the smallest squared rounding error, out of a bounded number of candidates.

Shapes: values [R, G, g] as `blocks` gives them, a choice [R, G]; where one scale serves the tensor, a choice is [1, 1].
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch

from optcore.algorithms.rounding import Grid, code_range, divided, grid_of
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
        for factor in _factors(args):
            yield Choice(storage.store(step * factor * _sign(args, low, high)))


def _factors(args: QuantArgs) -> Iterable[float]:
    if args.type == "int":
        return _INT_FACTORS if args.bits < 8 else _INT8_FACTORS
    return _FLOAT_FACTORS


def _sign(args: QuantArgs, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor | float:
    """Negative scales put the largest magnitude on the lowest code, which has no positive twin (-8 where 7 is the
    highest): with few codes that is worth a sixteenth of the range."""
    if args.type != "int" or args.bits > 4:
        return 1.0
    return torch.where(high > -low, -1.0, 1.0)


def _rows(per_scale: torch.Tensor, part: slice) -> torch.Tensor:
    """The scales of some rows; one for the whole tensor is everyone's."""
    return per_scale if len(per_scale) == 1 else per_scale[part]
