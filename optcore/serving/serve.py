"""What a child does: load, generate, then compare what the engine predicts with what the source does."""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np

from optcore.serving.comparison import Distance, distance
from optcore.serving.memory import peak_memory_bytes
from optcore.serving.session import Served, ServingTask, Session

Value = TypeVar("Value")
_REPEATS = 3


def serve(session_type: type[Session], folder: Path, task: ServingTask) -> Served:
    """Times are medians of three after a warm-up; memory is read before windows of logits are kept."""
    load_seconds, session = _timed(lambda: session_type(folder, task))
    tokens_ST = np.load(task.tokens)
    prompt_T = np.resize(tokens_ST, task.prompt_tokens)
    session.fill(prompt_T[:2])
    times = [_generate(session, prompt_T, task.new_tokens) for _ in range(_REPEATS)]
    fill_seconds, decode_seconds = (median(times_of_kind) for times_of_kind in zip(*times, strict=True))
    peak = peak_memory_bytes()
    found = _compare(session, tokens_ST, task.reference)
    return Served(
        load_seconds=load_seconds,
        prefill_speed=task.prompt_tokens / fill_seconds,
        decode_speed=task.new_tokens / decode_seconds if task.new_tokens else None,
        peak_memory_bytes=peak,
        kl=found.kl / found.positions if found.positions else None,
        agreement=found.agreements / found.positions if found.positions else None,
        positions=found.positions,
    )


def _generate(session: Session, prompt_T: np.ndarray, new_tokens: int) -> tuple[float, float]:
    """Seconds of prefill and of decode."""
    fill_seconds, _ = _timed(lambda: session.fill(prompt_T))
    started = time.perf_counter()
    for _ in range(new_tokens):
        session.step()
    return fill_seconds, time.perf_counter() - started


def _compare(session: Session, tokens_ST: np.ndarray, reference: str) -> Distance:
    found = Distance()
    if reference:
        for ids_T, source_PV in zip(tokens_ST, np.load(reference, mmap_mode="r"), strict=True):
            found = found.plus(distance(source_PV, session.logits(ids_T)))
    return found


def _timed(work: Callable[[], Value]) -> tuple[float, Value]:
    started = time.perf_counter()
    value = work()
    return time.perf_counter() - started, value
