"""Whole stages of the engine on a random model, over their floors of time and memory.

GPTQ is the one that the floor is of: two passes, no sweep, no refit, no smoothing. Seconds go from a stage's first byte
read to its last one written. A model of a few layers is run and one of 32 is told of: the median from one layer's end
to the next that many times, and what the run took beside its layers once.
"""

import time
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from benchmarks.gpu.case import Goal, times
from benchmarks.gpu.floors import Llama, Rates, awq_s, distillation_step_s, forward_s, gptq_bytes, gptq_s
from benchmarks.gpu.table import Row
from optcore.events import AnyEvent, Phase, Progress
from optcore.references import Calibration
from optcore.run import Run
from optcore.stage import DataWork
from optcore.techniques import Ptq, Qad

PLAIN: dict[str, Any] = {"rounding": "nearest", "scale_search": "max", "smoothing": "none", "propagate": "original"}
TWO_PASSES: dict[str, Any] = {
    "rounding": "gptq",
    "scale_search": "mse",
    "smoothing": "none",
    "propagate": "quantized",
    "gptq": {"sweeps": 0, "refit": False, "asymmetry": 0},
}
FLOORS = {"gptq": gptq_s, "awq": awq_s, "forward": forward_s}
"""Seconds of a model, its tokens, those of a window, and rates."""


class Stage(NamedTuple):
    """A recipe's stage and its floor."""

    name: str
    settings: Mapping[str, Any]
    floor: str


PTQ = (
    Stage("GPTQ INT4", {"scheme": "int4"} | TWO_PASSES, "gptq"),
    Stage("AWQ INT4", {"scheme": "int4"} | PLAIN | {"smoothing": "awq", "scale_search": "mse"}, "awq"),
    Stage("NVFP4 nearest", {"scheme": "nvfp4"} | PLAIN, "forward"),
    Stage("NVFP4 searched", {"scheme": "nvfp4"} | PLAIN | {"scale_search": "mse"}, "forward"),
)
DISTILLED = "NVFP4 nearest"
STEPS, BATCH = 8, 8


class Bench(NamedTuple):
    """A model, the text that it sees, and where."""

    model: Llama
    folder: Path
    """The model's."""
    windows: int
    length: int
    rates: Rates
    device: torch.device
    of_layers: int
    """Of the model that it stands for: a stage's seconds are those of its fixed part and of so many layers."""

    @property
    def tokens(self) -> int:
        return self.windows * self.length

    @property
    def calibration(self) -> Calibration:
        return Calibration(dataset="python-stdlib", samples=self.windows, sequence_length=self.length)

    def shape(self, windows: int) -> str:
        """For people."""
        return f"d {self.model.hidden}, {self.model.layers} layers, {times(windows, self.length)} tokens"


def quantize(bench: Bench, stage: Stage, folder: Path) -> Iterator[Row]:
    """Run a stage of post-training quantization; its seconds, and for GPTQ its peak of memory."""
    run = _run(bench, bench.folder, folder / stage.name)
    technique = Ptq.model_validate(dict(stage.settings))
    ends = _Ends(run, "calibrating", bench.device)
    _forget_peak(bench.device)
    started = time.perf_counter()
    technique.apply(run)
    _wait(bench.device)
    taken = time.perf_counter() - started
    layer = median(ends.apart())
    fixed = max(0.0, taken - bench.model.layers * layer)
    whole = bench.model._replace(layers=bench.of_layers)
    shape = f"{bench.shape(bench.windows)}: {fixed:.2f} s + {whole.layers} x {layer:.3f} s"
    floor = FLOORS[stage.floor](whole, bench.tokens, bench.length, bench.rates)
    has_goal = stage.floor == "gptq"
    goal = Goal(1 / 2.5, text="<= 2.5x floor") if has_goal else None
    yield Row(stage.name, shape, "floor", "s", fixed + whole.layers * layer, floor, goal=goal)
    if has_goal and bench.device.type == "cuda":
        peak = float(torch.cuda.max_memory_allocated(bench.device))
        most = Goal(1 / 1.5, text="<= 1.5x formula")
        shape = bench.shape(bench.windows)
        yield Row(f"{stage.name}, CUDA peak", shape, "formula", "bytes", peak, gptq_bytes(whole), goal=most)


def distill(bench: Bench, quantized: Path, folder: Path) -> Iterator[Row]:
    """A step of distillation of a quantized checkpoint from its own model, the median of some."""
    from optcore.training.prepare import prepare_windows

    technique = Qad.model_validate(
        {
            "steps": STEPS, "batch": BATCH, "sequence_length": bench.length, "skip_below": 0,
            "validation": {"samples": 1, "every": STEPS}, "processes": 1,
        }
    )  # fmt: skip
    run, windows = _run(bench, quantized, folder / "distilled"), _run(bench, bench.folder, folder / "windows")
    run.teacher, run.windows = bench.folder, windows.out
    prepare_windows(
        windows,
        DataWork(
            data=technique.prepared_data, sequence_length=technique.sequence_length,
            training=technique.windows, validation=technique.held_out,
        ),
    )  # fmt: skip
    ends = _Ends(run, "training", bench.device)
    technique.apply(run)
    # The first steps compile and allocate; before the last end there may be a validation.
    taken = median(ends.apart()[1:-1])
    floor = distillation_step_s(bench.model, BATCH * bench.length, bench.length, bench.rates)
    yield Row("QAD NVFP4, a step", bench.shape(BATCH), "floor", "s", taken, floor)


class _Ends:
    """When a run's parts were done."""

    def __init__(self, run: Run, phase: Phase, device: torch.device) -> None:
        self._phase, self._device = phase, device
        self._ends: list[float] = []
        run.emit = self._hear

    def _hear(self, event: AnyEvent) -> None:
        if isinstance(event, Progress) and event.phase == self._phase:
            _wait(self._device)
            self._ends.append(time.perf_counter())

    def apart(self) -> list[float]:
        """Seconds from one to the next."""
        return [after - before for before, after in pairwise(self._ends)]


def _run(bench: Bench, checkpoint: Path, out: Path) -> Run:
    out.mkdir(parents=True)
    scratch = out.with_name(f"{out.name} scratch")
    return Run("1-benchmark", checkpoint, bench.folder, out, scratch, bench.calibration, (), lambda event: None)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
