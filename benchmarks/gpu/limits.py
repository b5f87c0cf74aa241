"""What the card was seen to do in this run: everything else is divided by it."""

from typing import NamedTuple

import torch

from benchmarks.gpu.clock import seconds_of

COPIED_bytes = 2**30
PRODUCTS = ((8192, 8192, 8192), (8192, 14336, 4096), (16384, 4096, 4096))
"""Rows, columns and summed length: the best of them counts."""


class Limits(NamedTuple):
    """Rates a second."""

    copy: float
    """Bytes read and written by `copy_`."""
    bf16: float
    """FLOP of the best bfloat16 product."""
    float32: float
    """FLOP of the best float32 product, without TF32."""
    host_to_device: float
    """Bytes from pinned memory."""


def measure_limits(
    device: torch.device, copied: int = COPIED_bytes, products: tuple[tuple[int, int, int], ...] = PRODUCTS
) -> Limits:
    """Medians, on tensors that no cache holds."""
    bf16, float32 = (_best_product(device, products, dtype) for dtype in (torch.bfloat16, torch.float32))
    return Limits(_copying(device, copied), bf16, float32, _arriving(device, copied))


def _copying(device: torch.device, copied: int) -> float:
    here, there = (torch.empty(copied, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * copied / seconds_of(lambda: there.copy_(here), device)


def _arriving(device: torch.device, copied: int) -> float:
    here = torch.empty(copied, dtype=torch.uint8, pin_memory=device.type == "cuda")
    there = torch.empty(copied, dtype=torch.uint8, device=device)
    return copied / seconds_of(lambda: there.copy_(here, non_blocking=True), device)


def _best_product(device: torch.device, products: tuple[tuple[int, int, int], ...], dtype: torch.dtype) -> float:
    rates = []
    for rows, columns, length in products:
        left = torch.randn(rows, length, device=device, dtype=dtype)
        right = torch.randn(columns, length, device=device, dtype=dtype).mT
        rates.append(2 * rows * columns * length / seconds_of(lambda left=left, right=right: left @ right, device))
    return max(rates)
