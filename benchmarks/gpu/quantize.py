"""Scales found, values rounded, codes packed: 16-bit weights in, what is stored out."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.case import Case, Goal, Prepare, Work, compiled, normal, times
from benchmarks.gpu.sizes import Sizes
from optcore.algorithms.codes import decode
from optcore.algorithms.packing import unpack
from optcore.algorithms.rounding import E2M1_MAX, E4M3_MAX
from optcore.algorithms.scale_search import Method, factors
from optcore.algorithms.storage import e4m3, e8m0
from optcore.kernels.quantize import quantize
from optcore.schemes import PRESETS, QuantArgs

PLAIN = ("fp8_dynamic", "fp8_block", "int8")
COMPILED = ("fp8_dynamic", "int8")
"""Beside their definition as torch compiles it, at one shape: compiling takes longer than measuring."""
SEARCHED = ("int4", "nvfp4", "mxfp4")


def cases(sizes: Sizes) -> Iterator[Case]:
    """Plain maxima of long rows, then searches of short groups."""
    for rows, columns in sizes.all_matrices:
        for scheme in PLAIN:
            yield _case(f"quantize {scheme}", scheme, rows, columns, "max", Goal(0.88), sizes)
        for scheme in SEARCHED:
            name = f"search + pack {scheme}, {_candidates(PRESETS[scheme].weights)} candidates"
            yield _case(name, scheme, rows, columns, "mse", Goal(0.75), sizes)


def _case(name: str, scheme: str, rows: int, columns: int, method: Method, goal: Goal, sizes: Sizes) -> Case:
    args = PRESETS[scheme].weights
    arguments = partial(_arguments, args, rows, columns, method)
    rivals: dict[str, Prepare] = {}
    if scheme in COMPILED and (rows, columns) == sizes.matrices[0]:
        rivals["torch.compile"] = compiled(quantize, arguments)
    if args.block:
        rivals["torchao"] = partial(_torchao, rows, columns)
    # A search sums its errors in another order: of two scales that are equally good it may take the other.
    tolerance = 0.0 if method == "max" else 1e-5
    prepare = partial(_prepare, arguments, args, is_searched=method != "max")
    return Case(
        name, times(rows, columns), "copy", rows * columns * (2 + _stored_bytes(args)), prepare, goal, tolerance, rivals
    )


def _prepare(arguments: partial[tuple[Any, ...]], args: QuantArgs, device: torch.device, *, is_searched: bool) -> Work:
    given = arguments(device)

    def errors(stored: dict[str, torch.Tensor]) -> torch.Tensor:
        return (given[0].float() - decode(*unpack(stored, args), args)).square().sum(1)

    return Work(lambda: quantize(*given), errors if is_searched else None)


def _arguments(args: QuantArgs, rows: int, columns: int, method: Method, device: torch.device) -> tuple[Any, ...]:
    weight_NK = normal(device, rows, columns, scale=0.02)
    divisor = None
    if args.strategy == "tensor_group":
        divisor = (E4M3_MAX * E2M1_MAX / weight_NK.float().abs().amax()).reshape(1)
    return weight_NK, args, method, torch.bfloat16, None, divisor


def _stored_bytes(args: QuantArgs) -> float:
    """Of a value: its code, and its share of a scale where that is short."""
    scale = (1 if args.scale_type in ("e4m3", "e8m0") else 2) / args.group_size if args.group_size else 0
    return args.bits / 8 + scale


def _candidates(args: QuantArgs) -> int:
    """Scales that are tried, the plain one among them."""
    if args.scale_type == "stored":
        return 1 + len(factors(args))
    storage = e4m3(torch.ones(1)) if args.scale_type == "e4m3" else e8m0(1.0)
    return len({0, *storage.neighbours})


def _torchao(rows: int, columns: int, device: torch.device) -> Work:
    from torchao.kernel.blockwise_quantization import fp8_blockwise_weight_quant

    weight_NK = normal(device, rows, columns, scale=0.02)
    return Work(lambda: fp8_blockwise_weight_quant(weight_NK, 128))
