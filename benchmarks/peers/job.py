"""One row's work, in a fresh process of the peer's own environment: quantize, take the time, score, write JSON."""

import importlib
import importlib.metadata
import json
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.score import load, score

VERSIONS = ("torch", "transformers", "compressed-tensors", "nvidia-modelopt", "llmcompressor", "torchao", "auto-round")


@dataclass
class Job:
    """What a runner gets: where things lie, and the clock."""

    runner: str
    """Module below `benchmarks.peers`."""
    recipe: str
    """The runner's name of what to do."""
    model: Path
    tokens: Path
    """Token ids: `calibration` [S, T] and `evaluation` [S, T]; beside it lie the source's logits."""
    scratch: Path
    measured: dict[str, Any] = field(default_factory=dict)

    def load(self) -> Any:
        """The source model in float32."""
        return load(self.model)

    def windows(self, use: str) -> Any:
        """Token ids [samples, T]."""
        return _tensors(self.tokens)[use].long()

    def source_logits(self) -> Any:
        """Float32 [samples, T-1, vocabulary]: of `evaluation`, memory-mapped."""
        return _tensors(self.tokens.with_name("logits.safetensors"))["logits"]

    def batches(self, windows: int = 8) -> Any:
        """The calibration windows, some at a time."""
        return self.windows("calibration").split(windows)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """The optimize step: everything that the peer does between a loaded model and a quantized one."""
        begin = time.perf_counter()
        yield
        self.measured["seconds"] = time.perf_counter() - begin
        self.measured["peak_rss_mb"] = _peak_mb()

    def written(self, folder: Path) -> None:
        """Note how many bytes of tensors a peer wrote."""
        self.measured["bytes"] = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def run(job: Job) -> dict[str, Any]:
    """The row's numbers."""
    import torch

    torch.set_num_threads(2)
    torch.manual_seed(0)
    runner = importlib.import_module(f"benchmarks.peers.{job.runner}")
    quantized = runner.quantize(job)
    found = score(job.source_logits(), quantized, job.windows("evaluation"))
    if hasattr(runner, "save"):
        runner.save(job, quantized)
    return {**job.measured, **found, "versions": _versions()}


def _peak_mb() -> float:
    """Linux's high-water mark of this program; `getrusage` would count what the parent held when it started us."""
    status = Path("/proc/self/status").read_text()
    return float(status.partition("VmHWM:")[2].split()[0]) / 1024


def _tensors(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(path)


def _versions() -> dict[str, str]:
    installed = {each.metadata["Name"].lower(): each.version for each in importlib.metadata.distributions()}
    return {name: installed[name] for name in VERSIONS if name in installed}


def main(arguments: list[str]) -> int:
    """`python -m benchmarks.peers.job JOB.json RESULT.json`."""
    paths = ("model", "tokens", "scratch")
    settings = json.loads(Path(arguments[0]).read_text())
    job = Job(**{name: Path(value) if name in paths else value for name, value in settings.items()})
    try:
        result = run(job)
    except Exception as error:  # a peer may raise anything, and the row that failed is part of the table
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    Path(arguments[1]).write_text(json.dumps(result))
    return 1 if "error" in result else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
