"""One block of columns rounded in order: the part of GPTQ, and of coordinate descent, that no matrix product can do.

Each column becomes the lattice value nearest to what it would best be, and what that changes is heard by the columns
of the block behind it. In torch that is some ten small operations a column, on a GPU bound by their launches; the
kernel walks a whole block in one launch, for all outputs of all experts.

Legend: E experts (absent where there is one), B columns of a block, N outputs; S columns of a strip. Matrices are
transposed, so that the outputs, which are independent, lie side by side.
"""

from __future__ import annotations  # the kernel's constants are annotated with a module that is not imported

from collections.abc import Callable, Iterator
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

import torch

from optcore.kernels.dispatch import launched_by
from optcore.kernels.jit import device, interpreted, kernel
from optcore.kernels.numbers import GRIDS, divided, nearest

if TYPE_CHECKING:
    import triton.language as tl

    from optcore.algorithms.lattice import Lattice
    from optcore.algorithms.rounding import Grid

BLOCK_columns = 128
STRIP_columns = 16
# A warp, an output a thread: the walk from column to column is one long chain, as slow with fewer outputs as with more,
# and 4096 outputs are then one program for every multiprocessor of an H100. One warp also never waits for another.
_TILE_outputs = 32
# Of a thread: what the compiler would take of itself where rows are aligned, so that a dozen programs share a
# multiprocessor also where they are not.
_REGISTERS = 168


# mypy: disable-error-code="no-untyped-def,assignment"


@device
def _hear(
    asked_N, change_N, weights_ptr, start, columns, here_N, asked_b, change_b, weights_b,
    S: tl.constexpr,
):  # fmt: skip
    """Add to a strip what the strips of the block before it have changed."""
    rows_S1 = start + tl.arange(0, S)[:, None]
    inside_S1 = rows_S1 < columns
    place_SN = asked_N[None, :] + rows_S1 * asked_b
    asked_SN = tl.load(place_SN, mask=inside_S1 & here_N[None, :], other=0.0)
    for earlier in range(0, start, S):
        heard_S = earlier + tl.arange(0, S)
        weights_SS = tl.load(weights_ptr + rows_S1 * weights_b + heard_S[None, :], mask=inside_S1, other=0.0)
        change_SN = tl.load(change_N[None, :] + heard_S[:, None] * change_b, mask=here_N[None, :], other=0.0)
        asked_SN = tl.dot(weights_SS, change_SN, asked_SN, input_precision="ieee")
    tl.store(place_SN, asked_SN, mask=inside_S1 & here_N[None, :])


@kernel
def _round_columns(
    asked_ptr, rounded_ptr, change_ptr, weights_ptr, step_ptr, zero_ptr, offset_ptr,
    columns, outputs, low, high,
    asked_e, asked_b, rounded_e, rounded_b, change_e, change_b, weights_e, weights_b,
    step_e, step_b, step_n, zero_e, zero_b, zero_n, offset_e, offset_b, offset_n,
    GRID: tl.constexpr, S: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """All columns of a block, for N outputs of one expert. Within a block no offset comes near 2^31."""
    expert, outputs_N = tl.program_id(1).to(tl.int64), (tl.program_id(0) * N + tl.arange(0, N)).to(tl.int64)
    here_N = outputs_N < outputs
    asked_N = asked_ptr + expert * asked_e + outputs_N
    rounded_N = rounded_ptr + expert * rounded_e + outputs_N
    change_N = change_ptr + expert * change_e + outputs_N
    step_N = step_ptr + expert * step_e + outputs_N * step_n
    weights_ptr += expert * weights_e
    for start in range(0, columns, S):
        if start > 0:
            _hear(asked_N, change_N, weights_ptr, start, columns, here_N, asked_b, change_b, weights_b, S)
            tl.debug_barrier()  # a column is not rounded by the threads that hold its sum
        # Written at the strip's end: loads do not wait behind stores that, for all the compiler knows, they alias.
        values, changes = (), ()
        for column in tl.static_range(S):
            row = start + column
            inside_N = here_N & (row < columns)
            value_N = tl.load(asked_N + row * asked_b, mask=inside_N, other=0.0)
            for before in tl.static_range(column):
                weight = tl.load(weights_ptr + row * weights_b + start + before, mask=row < columns, other=0.0)
                value_N = tl.fma(changes[before], weight, value_N)
            old_N = tl.load(rounded_N + row * rounded_b, mask=inside_N, other=0.0)
            unit_N = tl.load(step_N + row * step_b, mask=inside_N, other=1.0)
            if offset_ptr is not None:
                place_N = offset_ptr + expert * offset_e + row * offset_b + outputs_N * offset_n
                least_N = tl.load(place_N, mask=inside_N, other=0.0)
                value_N, old_N = value_N - least_N, old_N - least_N
            value_N = divided(value_N, unit_N)
            if zero_ptr is not None:
                place_N = zero_ptr + expert * zero_e + row * zero_b + outputs_N * zero_n
                origin_N = tl.load(place_N, mask=inside_N, other=0.0)
                value_N = (nearest(value_N + origin_N, low, high, GRID) - origin_N) * unit_N
            else:
                value_N = nearest(value_N, low, high, GRID) * unit_N
            changes = changes + (old_N - value_N,)  # noqa: RUF005 (triton knows no starred tuples)
            if offset_ptr is not None:
                value_N += least_N
            values = values + (value_N,)  # noqa: RUF005
        for column in tl.static_range(S):
            inside_N = here_N & (start + column < columns)
            tl.store(rounded_N + (start + column) * rounded_b, values[column], mask=inside_N)
            tl.store(change_N + (start + column) * change_b, changes[column], mask=inside_N)
        tl.debug_barrier()


def _launch(
    asked_BN: torch.Tensor,
    rounded_BN: torch.Tensor,
    change_BN: torch.Tensor,
    weights_BB: torch.Tensor,
    lattice_BN: Lattice,
) -> None:
    if asked_BN.ndim == 2:
        return _launch(asked_BN[None], rounded_BN[None], change_BN[None], weights_BB[None], _led(lattice_BN))
    step_BN, zero_BN, grid, offset_BN = lattice_BN
    given = [asked_BN, rounded_BN, change_BN, weights_BB, step_BN, zero_BN, offset_BN]
    if any(one is not None and one.dtype != torch.float32 for one in given):
        return NotImplemented
    if any(one.stride(2) != 1 for one in (asked_BN, rounded_BN, change_BN, weights_BB)):
        return NotImplemented
    experts, columns, outputs = asked_BN.shape
    strides = [stride for one in given[:4] for stride in one.stride()[:2]]
    strides += [stride for one in given[4:] for stride in ((0, 0, 0) if one is None else one.stride())]
    tile = min(512, 1 << outputs.bit_length()) if interpreted() else _TILE_outputs
    _round_columns[-(-outputs // tile), experts](
        *given, columns, outputs, *map(float, grid.ends), *strides,
        GRID=GRIDS[grid.name], S=STRIP_columns, N=tile, num_warps=1, maxnreg=_REGISTERS, enable_fp_fusion=False,
    )  # fmt: skip


def _led(lattice_BN: Lattice) -> Lattice:
    """A lattice of one expert, which lacks their dimension, with it."""
    return lattice_BN._replace(
        step_NK=lattice_BN.step_NK[None],
        zero_NK=None if lattice_BN.zero_NK is None else lattice_BN.zero_NK[None],
        offset_NK=None if lattice_BN.offset_NK is None else lattice_BN.offset_NK[None],
    )


@launched_by(_launch)
def round_block(
    asked_BN: torch.Tensor,
    rounded_BN: torch.Tensor,
    change_BN: torch.Tensor,
    weights_BB: torch.Tensor,
    lattice_BN: Lattice,
) -> None:
    """Round the columns of a block in order, in place; all may lead with experts [E].

    Column k becomes the lattice value nearest to asked_k + sum over i < k of C_ki change_i, all float32:

    * `asked_BN`: what each column would best be; used up.
    * `rounded_BN`: what it was, then what it is rounded to. The sign of a zero is undefined.
    * `change_BN`: zeros, then the one less the other.
    * `weights_BB`: C, of which only what is below the diagonal counts.
    * `lattice_BN`: transposed like the rest, where a step may be a broadcast view.

    Kernel and definition add up the sum in different orders: one that ends at a tie may be rounded the other way.
    """
    block = _Part(asked_BN, rounded_BN, change_BN, lattice_BN.step_NK, lattice_BN.zero_NK, lattice_BN.offset_NK)
    for start in range(0, asked_BN.shape[-2], STRIP_columns):
        rows, earlier = slice(start, start + STRIP_columns), slice(0, start)
        strip = block.rows(rows)
        if start:
            _add_product(strip.asked, weights_BB[..., rows, earlier], block.change[..., earlier, :])
        _round_strip(strip, weights_BB[..., rows, rows].tril(-1), lattice_BN.grid)


class _Part(NamedTuple):
    """Rows in rounding: a block, a strip of it, or one column."""

    asked: torch.Tensor
    rounded: torch.Tensor
    change: torch.Tensor
    step: torch.Tensor
    zero: torch.Tensor | None
    offset: torch.Tensor | None

    def rows(self, rows: slice) -> _Part:
        return _Part(*(None if matrix is None else matrix[..., rows, :] for matrix in self))

    def columns(self) -> Iterator[_Part]:
        each = (repeat(None) if matrix is None else matrix.unbind(-2) for matrix in self)
        return map(_Part, *each)


def _round_strip(strip: _Part, weights_SS: torch.Tensor, grid: Grid) -> None:
    """`weights_SS` is strictly lower and changes to come are zero: a product with all of them is one with the done."""
    absorb = _absorb if strip.asked.ndim == 2 else _absorb_experts
    in_grid, changes_NS = _rounding(grid), strip.change.mT
    for column, weights_S in zip(strip.columns(), weights_SS.unbind(-2), strict=True):
        asked_N, rounded_N, change_N, step_N, zero_N, offset_N = column
        absorb(asked_N, changes_NS, weights_S)
        if offset_N is not None:
            asked_N -= offset_N
            rounded_N -= offset_N
        asked_N /= step_N
        values_N = in_grid(asked_N) if zero_N is None else in_grid(asked_N.add_(zero_N)).sub_(zero_N)
        torch.addcmul(rounded_N, values_N, step_N, value=-1, out=change_N)
        torch.mul(values_N, step_N, out=rounded_N)
        if offset_N is not None:
            rounded_N += offset_N


def _rounding(grid: Grid) -> Callable[[torch.Tensor], torch.Tensor]:
    """The grid's rounding, in place where the grid allows: most of the time goes into starting small operations."""
    if grid.range is None:
        return grid.round
    low, high = grid.range
    return lambda values: values.round_().clamp_(low, high)


def _absorb(asked_N: torch.Tensor, changes_NS: torch.Tensor, weights_S: torch.Tensor) -> None:
    asked_N.addmv_(changes_NS, weights_S)


def _absorb_experts(asked_EN: torch.Tensor, changes_ENS: torch.Tensor, weights_ES: torch.Tensor) -> None:
    asked_EN += (changes_ENS @ weights_ES.unsqueeze(-1)).squeeze(-1)


def _add_product(base: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    base.addmm_(left, right) if base.ndim == 2 else base.baddbmm_(left, right)
