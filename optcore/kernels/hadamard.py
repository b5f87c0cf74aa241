"""The fast Hadamard transform, alone or in front of a rounding.

On a GPU the butterflies of blocks up to 256 stay in registers: a value's partner is in the same thread or in the same
warp, so that one read and one write are all the memory that moves.

Legend: K channels, R panels of W channels that one program transforms.
"""

from __future__ import annotations  # the kernels' constants are annotated with a module that is not imported

from math import sqrt
from struct import pack, unpack
from typing import TYPE_CHECKING

import torch

from optcore.algorithms.hadamard import factored, paley
from optcore.algorithms.rounding import divided as quotient
from optcore.kernels.dispatch import launched_by
from optcore.kernels.jit import device, interpreted, kernel
from optcore.kernels.numbers import divided
from optcore.kernels.panels import panels_of

if TYPE_CHECKING:
    import triton.language as tl

# Beyond it partners lie in other warps, and every stage would go through shared memory.
LARGEST_block = 256


# mypy: disable-error-code="no-untyped-def"


@device
def transformed(values_RW, BLOCK: tl.constexpr, ROOT: tl.constexpr, R: tl.constexpr, W: tl.constexpr):
    """Each BLOCK values of a tile in the order of additions of the definition; ROOT is sqrt(BLOCK), in float32."""
    for place in tl.static_range(8):
        if 2 << place <= BLOCK:
            pairs = tl.reshape(values_RW, (R * W // (2 << place), 2, 1 << place))
            bits = pairs.to(tl.int32, bitcast=True)
            partner = (tl.sum(bits, 1, keep_dims=True) - bits).to(tl.float32, bitcast=True)
            is_second = (tl.arange(0, 2) == 1)[None, :, None]
            values_RW = tl.reshape(tl.where(is_second, partner - pairs, pairs + partner), (R, W))
    return divided(values_RW, ROOT)


@kernel
def _hadamard(
    x_ptr, out_ptr, panels, per_row, columns, x_stride,
    BLOCK: tl.constexpr, ROOT: tl.constexpr, R: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    panel_R = tl.program_id(0) * R + tl.arange(0, R)
    row_R1 = (panel_R // per_row).to(tl.int64)[:, None]
    column_RW = (panel_R % per_row * W)[:, None] + tl.arange(0, W)[None, :]
    inside_RW = (panel_R < panels)[:, None] & (column_RW < columns)
    values_RW = tl.load(x_ptr + row_R1 * x_stride + column_RW, mask=inside_RW, other=0.0)
    values_RW = transformed(values_RW, BLOCK, ROOT, R, W)
    tl.store(out_ptr + row_R1 * columns + column_RW, values_RW, mask=inside_RW)


def _launch(x: torch.Tensor, block: int) -> torch.Tensor:
    if x.dtype != torch.float32 or not is_fused(block) or x.numel() == 0 or is_differentiated(x):
        return NotImplemented
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    tiles = panels_of(x, block, 512 if interpreted() else 2048)
    _hadamard[tiles.programs,](
        tiles.rows_TK, out, tiles.panels, tiles.per_row, tiles.columns, tiles.rows_TK.stride(0),
        BLOCK=block, ROOT=root(block), R=tiles.height, W=tiles.width,
    )  # fmt: skip
    return out


@launched_by(_launch)
def hadamard(x: torch.Tensor, block: int) -> torch.Tensor:
    """Transform each `block` values along the last dimension [..., K] by H / sqrt(block): O(K (m + log block)).

    `block` divides K. Orthogonal: norms and inner products stay. Same shape and type.
    """
    core, doublings = factored(block)
    values = x.reshape(-1, core, block // core)
    for place in range(doublings):
        half = values.unflatten(2, (-1, 2, 2**place))
        values = torch.stack((half[..., 0, :] + half[..., 1, :], half[..., 0, :] - half[..., 1, :]), 3).flatten(2)
    if core > 1:
        values = torch.einsum("ij,njk->nik", paley(core).to(values), values)
    return quotient(values, sqrt(block)).reshape(x.shape)


def is_differentiated(x: torch.Tensor) -> bool:
    """Whether autograd follows what is computed with x: definitions have gradients, kernels none."""
    return x.requires_grad and torch.is_grad_enabled()


def is_fused(block: int) -> bool:
    """Whether kernels transform blocks of this size."""
    return 2 <= block <= LARGEST_block and block & (block - 1) == 0


def root(block: int) -> float:
    """sqrt(block) as float32 has it."""
    return unpack("f", pack("f", sqrt(block)))[0]
