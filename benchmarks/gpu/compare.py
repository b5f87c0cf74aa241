"""A kernel beside its definition, its limit and its rivals, all in one process on the same tensors."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from math import isnan
from typing import Any

import torch

from benchmarks.gpu.case import Case, Prepare, Work
from benchmarks.gpu.clock import seconds_of
from benchmarks.gpu.limits import Limits
from benchmarks.gpu.table import Row
from optcore.kernels.counting import counting
from optcore.kernels.dispatch import SWITCH


def compare(case: Case, limits: Limits, device: torch.device) -> Row:
    """What was found; a kernel that did not run, or came out otherwise, is a problem."""
    ours, launches = _made(case.prepare, device)
    with definitions():
        apart = _apart(ours, _made(case.prepare, device)[0])
    del ours
    problem = "" if apart <= case.tolerance else f"{apart:.1e} apart, {case.tolerance:.1e} is allowed"
    if case.has_kernel and device.type == "cuda" and not launches:
        problem = "no kernel ran"
    taken = _taken(case.prepare, device)
    with definitions():
        definition = _taken(case.prepare, device)
    beside = {name: _taken_by_rival(prepare, device) for name, prepare in case.rivals.items()}
    ideal = case.work / getattr(limits, case.limit)
    return Row(case.kernel, case.shape, case.limit, "s", taken, ideal, definition, apart, beside, case.goal, problem)


@contextmanager
def definitions() -> Iterator[None]:
    """Meanwhile no operator runs its kernel."""
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = "torch"
    try:
        yield
    finally:
        del os.environ[SWITCH]
        if before is not None:
            os.environ[SWITCH] = before


def _prepared(prepare: Prepare, device: torch.device) -> Work:
    """Made without kernels: what is measured gets the same tensors whatever the kernels do."""
    with definitions():
        return prepare(device)


def _made(prepare: Prepare, device: torch.device) -> tuple[list[torch.Tensor], int]:
    """Results, and how many kernels were launched for them."""
    work = _prepared(prepare, device)
    with counting() as counts:
        made = work.run()
    return _tensors_of(work.result(made) if work.result else made), counts.launches.total()


def _taken(prepare: Prepare, device: torch.device) -> float:
    return seconds_of(_prepared(prepare, device).run, device)


def _taken_by_rival(prepare: Prepare, device: torch.device) -> float | str:
    """A rival's failure is its own: the row says it, and the others are still measured."""
    try:
        with definitions():  # or what torch compiles of a definition would call our kernels
            return _taken(prepare, device)
    except Exception as error:
        return type(error).__name__


def _tensors_of(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value.detach()]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [one for part in parts for one in _tensors_of(part)]


def _apart(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """The largest distance, as a norm over the definition's norm; exactly 0 only where no bit differs."""
    found = [_distance(*pair) for pair in zip(ours, theirs, strict=True)]
    return float("inf") if not found or any(map(isnan, found)) else max(found)


def _distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return float("inf")
    if torch.equal(*(one.reshape(-1).view(torch.uint8) for one in (ours, theirs))):
        return 0.0
    norm = theirs.double().norm().clamp(min=torch.finfo(torch.float64).tiny)
    return max(float((ours.double() - theirs.double()).norm() / norm), torch.finfo(torch.float64).tiny)
