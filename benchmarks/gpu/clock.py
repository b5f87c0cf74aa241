"""How long a call takes on its device."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

_FLUSHED_bytes = 2**29
"""Written before each call: no cache holds what it reads, and the host has the time of that writing to launch it."""


def seconds_of(run: Callable[[], Any], device: torch.device, budget_s: float = 0.3, most: int = 20) -> float:
    """Median over as many calls as the budget holds, by the device's own clock where it is a GPU."""
    measure = _on_gpu if device.type == "cuda" else _on_cpu
    run()  # what is compiled or loaded at a first call is none of its time
    first = measure(run, device, 1)[0]
    return median(measure(run, device, min(most, max(1, int(budget_s / first)))))


def _on_gpu(run: Callable[[], Any], device: torch.device, rounds: int) -> list[float]:
    flushed = torch.empty(_FLUSHED_bytes, dtype=torch.uint8, device=device)
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
    for start, end in pairs:
        flushed.zero_()
        start.record()
        run()
        end.record()
    torch.cuda.synchronize(device)
    return [start.elapsed_time(end) / 1e3 for start, end in pairs]


def _on_cpu(run: Callable[[], Any], device: torch.device, rounds: int) -> list[float]:
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return taken
