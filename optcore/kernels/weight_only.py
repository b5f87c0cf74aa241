"""Products of 16-bit inputs and stored 4-bit weights, as decoding a few tokens takes them: bound by reading the weight.

Every byte of the weight is read once, 16 at a time, and turned into numbers in registers. INT4 and NVFP4 are alike in
memory: words of eight codes, code k in the bits from 4 k on. One row is multiplied and added on plain cores, more rows
on tensor cores, padded to a multiple of 16. Where outputs alone are too few programs to fill a card, each sums a part
of the inputs and a second kernel adds the parts up, in one order always.

Legend: M rows of x, K inputs, N outputs, W words of one scale, G scales (four of NVFP4's make one), S parts of K.
"""

from __future__ import annotations  # the kernels' constants are annotated with a module that is not imported

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from optcore.algorithms.codes import decode
from optcore.algorithms.packing import unpack
from optcore.kernels.dispatch import launched_by
from optcore.kernels.jit import device, interpreted, kernel
from optcore.kernels.numbers import decode_e4m3, round_bf16
from optcore.schemes import QuantArgs

if TYPE_CHECKING:
    import triton.language as tl

MOST_ROWS = 64
"""More rows are bound by arithmetic, and better off with the weight decoded once."""
_ROWS_OF_A_DOT = 16
# Eight for each of the 132 processors of an H100 or H200: twice what fits at once, so that none waits for the last.
_PROGRAMS = 1056
_GROUPS = (32, 64, 128, 256)
_TYPES = (torch.bfloat16, torch.float16)  # and float32, for one row


# mypy: disable-error-code="no-untyped-def"


@device
def _in_place(words, PLACE: tl.constexpr, FP4: tl.constexpr):
    """One of the eight codes of words as a tiny float32, in the least instructions: E2M1 as value / 2^126, INT4, left
    where it stands if possible, as code * 2^(4 p - 149), p being `_place`. Subnormal numbers are integers times
    2^-149, and a GPU multiplies them as fast as others."""
    if FP4:
        return _aligned(words, PLACE, FP4)
    bits = words & (15 << (4 * PLACE)) if PLACE < 6 else (words >> 8) & (15 << (4 * PLACE - 8))
    return bits.to(tl.float32, bitcast=True)


@device
def _aligned(words, PLACE: tl.constexpr, FP4: tl.constexpr):
    """The same, whichever the code: E2M1 as value / 2^126, INT4 as code / 2^130."""
    if FP4:
        bits = ((words << (28 - 4 * PLACE)) >> 6) & -2118123520  # sign, two bits of the exponent, one of the mantissa
    else:
        bits = (words << (19 - 4 * PLACE) if PLACE < 5 else words >> (4 * PLACE - 19)) & 7864320
    return bits.to(tl.float32, bitcast=True)


@device
def _raised(x, FP4: tl.constexpr):
    """x [G, W, 8] times the powers of two that `_in_place` lacks: products are then in units of 2^-26 and 2^-49. All
    that it lacks would overflow."""
    place = tl.arange(0, 8)
    power = tl.full((8,), 227, tl.int32) if FP4 else 227 - 4 * tl.where(place < 6, place, place - 2)
    return x * (power << 23).to(tl.float32, bitcast=True)[None, None, :]


@device
def _word_sums(words, x, FP4: tl.constexpr):
    """Sums over the eight codes of each word [N, G, W] times x [G, W, 8], by `_in_place`."""
    even, odd = tl.split(tl.reshape(x, (x.shape[0], x.shape[1], 2, 2, 2)))
    x04, x26 = tl.split(even)
    x15, x37 = tl.split(odd)
    x0, x4 = tl.split(x04)
    x1, x5 = tl.split(x15)
    x2, x6 = tl.split(x26)
    x3, x7 = tl.split(x37)
    total = _in_place(words, 0, FP4) * x0[None] + _in_place(words, 1, FP4) * x1[None]
    total += _in_place(words, 2, FP4) * x2[None]
    total += _in_place(words, 3, FP4) * x3[None]
    total += _in_place(words, 4, FP4) * x4[None]
    total += _in_place(words, 5, FP4) * x5[None]
    total += _in_place(words, 6, FP4) * x6[None]
    return total + _in_place(words, 7, FP4) * x7[None]


@device
def _eight(words, FP4: tl.constexpr):
    """`_aligned` of each code of words [N, W], as [N, 8 W]: joined, because what a thread loads then stays with it."""
    a = tl.join(_aligned(words, 0, FP4), _aligned(words, 4, FP4))
    b = tl.join(_aligned(words, 1, FP4), _aligned(words, 5, FP4))
    c = tl.join(_aligned(words, 2, FP4), _aligned(words, 6, FP4))
    d = tl.join(_aligned(words, 3, FP4), _aligned(words, 7, FP4))
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (words.shape[0], 8 * words.shape[1]))


@device
def _zeros_of(zero_ptr, rows, groups, scales, inside):
    """Zero points as codes are stored, 0..15: those of eight rows are a word."""
    words = tl.load(zero_ptr + (rows // 8) * scales + groups, mask=inside, other=0)
    return ((words >> (4 * (rows % 8))) & 15).to(tl.float32)


@device
def _store(y_ptr, value, inside):
    if y_ptr.dtype.element_ty == tl.bfloat16:
        value = round_bf16(value)
    tl.store(y_ptr, value.to(y_ptr.dtype.element_ty), mask=inside)


@kernel
def _multiply_row(
    x_ptr, words_ptr, scale_ptr, zero_ptr, divisor_ptr, y_ptr, rows, scales, steps,
    FP4: tl.constexpr, ZEROS: tl.constexpr, N: tl.constexpr, G: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """N outputs of one row of x, over `steps` times G scales of the inputs."""
    part = tl.program_id(1)
    rows_N = tl.program_id(0) * N + tl.arange(0, N)
    row_N11 = rows_N.to(tl.int64)[:, None, None]
    words_GW = tl.arange(0, G)[:, None] * W + tl.arange(0, W)[None, :]
    inputs_GWE = (words_GW * 8)[:, :, None] + tl.arange(0, 8)[None, None, :]
    sum_NGW = tl.zeros((N, G, W), tl.float32)
    for step in range(part * steps, part * steps + steps):
        groups_G = step * G + tl.arange(0, G)
        here_G = groups_G < scales
        inside_NG1 = (row_N11 < rows) & here_G[None, :, None]
        word_NGW = tl.load(words_ptr + (row_N11 * scales + step * G) * W + words_GW[None], mask=inside_NG1, other=0)
        x_GWE = tl.load(x_ptr + step * G * W * 8 + inputs_GWE, mask=here_G[:, None, None], other=0.0).to(tl.float32)
        scale_NG1 = tl.load(scale_ptr + row_N11 * scales + groups_G[None, :, None], mask=inside_NG1, other=0)
        total_NGW = _word_sums(word_NGW, _raised(x_GWE, FP4), FP4)
        if FP4:
            shift_W = 8 * (tl.arange(0, W) // 2)
            scale_NGW = decode_e4m3((scale_NG1 >> shift_W[None, None, :]) & 255)
            sum_NGW += total_NGW * scale_NGW
        else:
            zero_NG1 = 8.0
            if ZEROS:
                zero_NG1 = _zeros_of(zero_ptr, row_N11, groups_G[None, :, None], scales, inside_NG1)
            offset_NGW = tl.sum(x_GWE, 2)[None] * zero_NG1
            sum_NGW += (total_NGW * 562949953421312.0 - offset_NGW) * scale_NG1.to(tl.float32)
    sum_N = tl.sum(tl.sum(sum_NGW, 2), 1)
    if FP4:
        sum_N = sum_N * 67108864.0 / tl.load(divisor_ptr)
    _store(y_ptr + part.to(tl.int64) * rows + rows_N, sum_N, rows_N < rows)


@kernel
def _multiply_rows(
    x_ptr, words_ptr, scale_ptr, zero_ptr, divisor_ptr, y_ptr, tokens, rows, scales, steps, x_stride,
    FP4: tl.constexpr, ZEROS: tl.constexpr, UPCAST: tl.constexpr, M: tl.constexpr, N: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """N outputs of all rows of x, over `steps` scales of the inputs."""
    part = tl.program_id(1)
    rows_N, tokens_M = tl.program_id(0) * N + tl.arange(0, N), tl.arange(0, M)
    row_N = rows_N.to(tl.int64)
    x_M1 = x_ptr + tokens_M.to(tl.int64)[:, None] * x_stride + tl.arange(0, 8 * W)[None, :]
    sum_MN = tl.zeros((M, N), tl.float32)
    for step in range(part * steps, min(part * steps + steps, scales)):
        word_NW = tl.load(
            words_ptr + (row_N * scales + step)[:, None] * W + tl.arange(0, W)[None, :],
            mask=rows_N[:, None] < rows, other=0,
        )  # fmt: skip
        x_MK = tl.load(x_M1 + step * (8 * W), mask=tokens_M[:, None] < tokens, other=0.0)
        scale_N = tl.load(scale_ptr + row_N * scales + step, mask=rows_N < rows, other=0)
        if FP4:
            scale_NW = decode_e4m3((scale_N[:, None] >> (8 * (tl.arange(0, W) // 2))[None, :]) & 255)
            scale_NK = tl.reshape(tl.broadcast_to(scale_NW[:, :, None], (N, W, 8)), (N, 8 * W))
            weight_NK = _eight(word_NW, FP4) * 8.507059173023462e37 * scale_NK  # six bits at most: exact in any type
        else:
            zero_N = tl.full((N,), 8.0, tl.float32)
            if ZEROS:
                zero_N = _zeros_of(zero_ptr, row_N, step, scales, rows_N < rows)
            # In eighths: 2^127 is a float32, 2^130 is none.
            weight_NK = _eight(word_NW, FP4) * 1.7014118346046923e38 - 0.125 * zero_N[:, None]
        if UPCAST:  # the interpreter multiplies bfloat16 wrongly
            x_MK = x_MK.to(tl.float32)
        made_MN = tl.dot(x_MK, tl.trans(weight_NK.to(x_MK.dtype)), input_precision="ieee")
        sum_MN += made_MN if FP4 else made_MN * (8.0 * scale_N.to(tl.float32))[None, :]
    if FP4:
        sum_MN = sum_MN / tl.load(divisor_ptr)
    place_MN = (part.to(tl.int64) * tokens + tokens_M[:, None]) * rows + rows_N[None, :]
    _store(y_ptr + place_MN, sum_MN, (tokens_M[:, None] < tokens) & (rows_N[None, :] < rows))


@kernel
def _add_parts(parts_ptr, y_ptr, count, parts, BLOCK: tl.constexpr):
    """Sums over the first axis of [S, M N]."""
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for part in range(parts):
        total += tl.load(parts_ptr + part * count + places, mask=places < count, other=0.0)
    _store(y_ptr + places, total, places < count)


def _launch(x_MK: torch.Tensor, stored: Mapping[str, torch.Tensor], args: QuantArgs) -> torch.Tensor:
    is_fp4 = args.type == "float" and args.strategy == "tensor_group"
    if not _fits(x_MK, args, is_fp4=is_fp4):
        return NotImplemented
    (tokens, columns), rows = x_MK.shape, len(stored["weight_packed"])
    x_MK = x_MK if x_MK.stride(1) == 1 else x_MK.contiguous()
    group = 64 if is_fp4 else args.group_size
    assert group
    words, scales = group // 8, columns // group
    scale, zero = stored["weight_scale"].contiguous(), stored.get("weight_zero_point")
    tensors = (
        stored["weight_packed"].contiguous().view(torch.int32),
        scale.view(torch.int32) if is_fp4 else scale,
        None if zero is None else zero.contiguous(),
        stored.get("weight_global_scale"),
    )
    # For one row of x a step reads 512 bytes of 16 outputs: four 16-byte loads a thread, in few enough registers for
    # four programs a processor. For several it reads one scale's weights of 64 outputs, and triton fetches ahead.
    wide = (32 if interpreted() else 128) // words or 1
    tile, width = ((32 if interpreted() else 16), wide) if tokens == 1 else ((32 if interpreted() else 64), 1)
    steps, parts = _parts(-(-rows // tile), -(-scales // width))
    grid = (-(-rows // tile), parts)
    y_MN = x_MK.new_empty(tokens, rows)
    out = y_MN if parts == 1 else x_MK.new_empty(parts, tokens, rows, dtype=torch.float32)
    common = {"FP4": is_fp4, "ZEROS": zero is not None, "N": tile, "W": words}
    if tokens == 1:
        _multiply_row[grid](x_MK, *tensors, out, rows, scales, steps, G=width, **common)
    else:
        padded = max(_ROWS_OF_A_DOT, 1 << (tokens - 1).bit_length())
        sizes, warps = (tokens, rows, scales, steps, x_MK.stride(0)), 4 if padded < MOST_ROWS else 8
        _multiply_rows[grid](x_MK, *tensors, out, *sizes, UPCAST=interpreted(), M=padded, num_warps=warps, **common)
    if parts > 1:
        _add_parts[(-(-y_MN.numel() // 256),)](out, y_MN, y_MN.numel(), parts, BLOCK=256)
    return y_MN


def _fits(x_MK: torch.Tensor, args: QuantArgs, *, is_fp4: bool) -> bool:
    """Whether the kernels were written for a product."""
    is_typed = x_MK.dtype in _TYPES or (x_MK.dtype == torch.float32 and len(x_MK) == 1)
    if not is_typed or not 1 <= len(x_MK) <= MOST_ROWS or args.bits != 4:
        return False
    if is_fp4:
        return x_MK.shape[1] % 64 == 0
    return args.type == "int" and args.strategy == "group" and args.group_size in _GROUPS


def _parts(tiles: int, steps: int) -> tuple[int, int]:
    """Steps of a program, and into how many parts they cut the inputs."""
    wanted = min(steps, -(-_PROGRAMS // tiles))
    each = -(-steps // wanted)
    return each, -(-steps // each)


@launched_by(_launch)
def weight_only_matmul(x_MK: torch.Tensor, stored: Mapping[str, torch.Tensor], args: QuantArgs) -> torch.Tensor:
    """x W^T [M, N] in x's type, for the stored tensors of W [N, K] by suffix, as `packing.pack` gives them.

    Summed in float32, in another order by the kernels. These take up to `MOST_ROWS` rows in float16 or bfloat16, one in
    float32 too, all below 2^28 in magnitude; INT4 in groups of 32 to 256, and NVFP4 with K divisible by 64. They round
    no weight: a code, and an E2M1 value times its E4M3 scale, is exact in either type.
    """
    return (x_MK.float() @ decode(*unpack(stored, args), args).mT).to(x_MK.dtype)
