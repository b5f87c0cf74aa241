"""The command: measure, print, write."""

import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.gpu.case import Case
from benchmarks.gpu.compare import compare
from benchmarks.gpu.floors import LLAMA_8B, Llama, Rates
from benchmarks.gpu.limits import Limits, measure_limits
from benchmarks.gpu.random_llama import write_random_llama
from benchmarks.gpu.registry import cases
from benchmarks.gpu.sizes import LARGE, Sizes
from benchmarks.gpu.stages import BATCH, DISTILLED, PTQ, Bench, Stage, distill, quantize
from benchmarks.gpu.table import HEADER, Row, document_of, markdown_of

NO_GPU = 3
"""The exit status where there is no CUDA device."""
SECONDS = 440.0
"""What begins later than this is left out: a whole run stays below eight minutes."""
WINDOWS, LENGTH_tokens = 128, 2048
KERNELS_share = 0.6
"""Of the time: the rest is for whole stages."""
SMALL = Llama(layers=2, hidden=512, inner=1024, keys=128, vocabulary=2048)

Measure = Callable[[], Iterator[Row]]


def measure_gpu(out: Path, tokenizer: Path, layers: int) -> int:
    """Print the table and write it to `out`: 0, 1 where something failed, or `NO_GPU`."""
    if not torch.cuda.is_available():
        print("no CUDA device on this machine: kernels are measured on a GPU only", file=sys.stderr)
        return NO_GPU
    device, started = torch.device("cuda"), time.monotonic()
    machine, limits = _machine(device), measure_limits(device)
    print(", ".join(f"{name} {what}" for name, what in machine.items()))
    print(f"{markdown_of(limits)}\n\n{HEADER}", flush=True)
    rows = []
    for row in measured(device, limits, tokenizer, LLAMA_8B._replace(layers=layers), started):
        rows.append(row)
        print(row.markdown(), flush=True)
        taken = time.monotonic() - started  # written with every row: what ends the process takes none of them away
        out.write_text(json.dumps(document_of(machine, limits, rows, taken), indent=2) + "\n")
    print(f"\n{time.monotonic() - started:.0f} s; written to {out}")
    return int(any(row.problem for row in rows))


def measured(
    device: torch.device, limits: Limits, tokenizer: Path, model: Llama, started: float,
    sizes: Sizes = LARGE, windows: int = WINDOWS, length: int = LENGTH_tokens,
) -> Iterator[Row]:  # fmt: skip
    """All rows, each as soon as it is there."""
    kernels_end = started + KERNELS_share * SECONDS
    for case in cases(sizes):
        yield from _row(case.kernel, case.shape, kernels_end, partial(_compared, case, limits, device))
    with tempfile.TemporaryDirectory() as name:
        bench = _bench(model, Path(name), tokenizer, limits, device)._replace(windows=windows, length=length)
        for stage in PTQ:
            yield from _row(
                stage.name,
                bench.shape(windows),
                started + SECONDS,
                partial(_quantized, bench, stage, tokenizer, limits),
            )
        distilling = partial(distill, bench, bench.folder.parent / DISTILLED, bench.folder.parent)
        yield from _row("QAD NVFP4", bench.shape(BATCH), started + SECONDS, distilling)


def _bench(model: Llama, folder: Path, tokenizer: Path, limits: Limits, device: torch.device) -> Bench:
    (folder / "model").mkdir()
    write_random_llama(folder / "model", model, tokenizer, device)
    rates = Rates(limits.bf16, limits.float32)
    return Bench(model, folder / "model", 4, 128, rates, device, LLAMA_8B.layers)


def _quantized(bench: Bench, stage: Stage, tokenizer: Path, limits: Limits) -> Iterator[Row]:
    """On a GPU a small model goes first: the kernels are compiled then, as in a worker that has done a job before."""
    if bench.device.type == "cuda":
        with tempfile.TemporaryDirectory() as name:
            small = _bench(SMALL, Path(name), tokenizer, limits, bench.device)
            list(quantize(small, stage, Path(name)))
    yield from quantize(bench, stage, bench.folder.parent)


def _compared(case: Case, limits: Limits, device: torch.device) -> Iterator[Row]:
    yield compare(case, limits, device)


def _row(what: str, shape: str, deadline: float, measure: Measure) -> Iterator[Row]:
    """Its rows; a failure is a row too, so that what was measured before and after it is not lost."""
    if time.monotonic() > deadline:
        yield Row(what, shape, "", problem="no time was left")
        return
    try:
        torch.cuda.empty_cache()
        yield from measure()
    except Exception as error:
        yield Row(what, shape, "", problem=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


def _machine(device: torch.device) -> dict[str, str]:
    found = {"device": torch.cuda.get_device_name(device), "python": platform.python_version()}
    for name in ("torch", "triton", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found
