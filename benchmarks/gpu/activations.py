"""Fake quantization of activations, scales made at run time where the format does: 16 bits in, 16 bits out."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.case import Case, Goal, Work, compiled, normal, times
from benchmarks.gpu.sizes import Sizes
from optcore.algorithms.activations import static_scale
from optcore.kernels.activations import fake_quantize_activation
from optcore.schemes import KV_CACHE_PRESETS, PRESETS

SCHEMES = ("fp8", "fp8_dynamic", "fp8_block", "int8", "nvfp4", "mxfp4", "mxfp8")
COMPILED = ("fp8_dynamic", "nvfp4")
"""Beside their definition as torch compiles it, at one shape: compiling takes longer than measuring."""
LARGEST = 6.0
"""Of a calibration of N(0, 1)."""


def cases(sizes: Sizes) -> Iterator[Case]:
    """Each format of activations; the search of NVFP4's scales; heads that are rotated first."""
    for tokens, columns in sizes.matrices:
        for scheme in SCHEMES:
            arguments = partial(_arguments, scheme, tokens, columns, search=False)
            is_compiled = scheme in COMPILED and (tokens, columns) == sizes.matrices[0]
            yield Case(
                f"fake-quant activations {scheme}", times(tokens, columns), "copy", 4 * tokens * columns,
                partial(_prepare, arguments), Goal(0.88),
                rivals={"torch.compile": compiled(fake_quantize_activation, arguments)} if is_compiled else {},
            )  # fmt: skip
    tokens, columns = sizes.matrices[0]
    searched = partial(_arguments, "nvfp4", tokens, columns, search=True)
    yield Case(
        "fake-quant activations nvfp4, 8 candidates", times(tokens, columns), "copy", 4 * tokens * columns,
        partial(_prepare, searched, is_searched=True), Goal(0.75), tolerance=1e-5,
    )  # fmt: skip
    heads = columns // sizes.head_width
    # What is rotated comes back in float32.
    yield Case(
        "rotate + fake-quant keys int4", times(heads, tokens, sizes.head_width), "copy", 6 * tokens * columns,
        partial(_prepare, partial(_rotated, heads, tokens, sizes.head_width)), Goal(0.75),
    )  # fmt: skip


def _prepare(arguments: partial[tuple[Any, ...]], device: torch.device, *, is_searched: bool = False) -> Work:
    """The result of a search is its error: equally good scales are as good as one another."""
    given = arguments(device)

    def errors(rounded: torch.Tensor) -> torch.Tensor:
        return (given[0].float() - rounded).square().sum(-1)

    return Work(lambda: fake_quantize_activation(*given), errors if is_searched else None)


def _arguments(scheme: str, tokens: int, columns: int, device: torch.device, *, search: bool) -> tuple[Any, ...]:
    args = PRESETS[scheme].activations
    assert args
    static = args.strategy in ("tensor", "tensor_group")
    scale = static_scale(LARGEST, args, torch.bfloat16).to(device) if static else None
    return normal(device, tokens, columns), args, scale, search


def _rotated(heads: int, tokens: int, width: int, device: torch.device) -> tuple[Any, ...]:
    return normal(device, 1, heads, tokens, width), KV_CACHE_PRESETS["int4"], None, False, width
