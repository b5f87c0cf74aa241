"""Amounts of work and memory of one stage, and what they come to on a machine."""

from typing import NamedTuple

from optcore.estimate.constants import (
    CPU_CORE,
    GPU,
    GPU_RATES,
    BASE_bytes,
    CORES_used,
    GPU_BASE_bytes,
    GPU_HOST_bytes,
    GPU_other,
    START_seconds,
)
from optcore.estimate.document import Machine
from optcore.evaluate.throughput import WHOLE_room
from optcore.host_memory import ROOM
from optcore.training.footprint import Footprint


class Work(NamedTuple):
    """What a stage does, in units whose costs `constants` lists."""

    starts: tuple[str, ...] = ("transformers",)
    """Processes one after the other, by the heaviest library that each imports."""
    flops: float = 0.0
    values: float = 0.0
    columns: float = 0.0
    calls: float = 0.0
    disk: float = 0.0
    network: float = 0.0

    def plus(self, other: "Work") -> "Work":
        """Both; the processes are those of the first and of the second."""
        sums = (own + more for own, more in zip(self[1:], other[1:], strict=True))
        return Work(self.starts + other.starts, *sums)

    def times(self, factor: float) -> "Work":
        """So many times, in the same processes."""
        return Work(self.starts, *(amount * factor for amount in self[1:]))

    def seconds(self, machine: Machine) -> float:
        """On a machine that nothing was learned of."""
        starts = sum(START_seconds[each] for each in self.starts)
        if machine.device == "cuda":
            rate = gpu_rate(machine.gpu_kind)
            spread = (GPU.flops / rate, GPU.values / max(rate, GPU_other), GPU.columns, GPU.calls)
            costs = (*spread, GPU.disk, GPU.network)
            starts *= 2  # CUDA's context and kernels
        else:
            cores = min(machine.cores, CORES_used)
            spread = (CPU_CORE.flops / cores, CPU_CORE.values / cores, CPU_CORE.columns, CPU_CORE.calls)
            costs = (*spread, CPU_CORE.disk, CPU_CORE.network)
        return starts + sum(amount * cost for amount, cost in zip(self[1:], costs, strict=True))


class Memory(NamedTuple):
    """Bytes that a stage's process holds at its peak."""

    base: str = "transformers"
    """The heaviest library that it imports."""
    host: float = 0.0
    """What is in the host's memory wherever is computed: states between layers, a checkpoint on its way."""
    device: float = 0.0
    """What is where is computed, in float32 on a CPU and in bfloat16 on a GPU: layers, products, what is between."""
    exact: float = 0.0
    """The same in float32 everywhere: Gram matrices, logits that are compared."""
    trained: Footprint | None = None
    """What training holds beside that, over all processes: the student, the teacher, or both."""
    processes: int = 1
    loaded: float = 0.0
    """Of a model that other processes load as a whole, one after the other, where there is room for it."""

    def loads(self, machine: Machine) -> bool:
        """Whether those processes are started, and do not run out: what they measure is left out else."""
        host, gpu = machine.host_memory_bytes, machine.gpu_memory_bytes
        if host is not None and WHOLE_room * self.loaded > host:
            return False
        return machine.device != "cuda" or gpu is None or GPU_BASE_bytes + self.loaded <= gpu

    def on(self, machine: Machine) -> tuple[int, int]:
        """Of the host, over all processes, and of each GPU."""
        host, gpu = self._own(machine)
        if not self.loaded or not self.loads(machine):
            return host, gpu
        loading = BASE_bytes["transformers"] + self.loaded
        if machine.device != "cuda":
            return max(host, round(loading)), gpu
        return max(host, round(GPU_HOST_bytes + loading)), max(gpu, round(GPU_BASE_bytes + self.loaded))

    def _own(self, machine: Machine) -> tuple[int, int]:
        base = BASE_bytes[self.base] * self.processes
        if machine.device != "cuda" or self.base != "transformers":
            trained = self.trained.host(self.processes) if self.trained else 0.0
            return round(base + self.host + (self.device + self.exact) * self.processes + trained), 0
        checkpoint, trained = (self.trained.checkpoint, self.trained.gpu) if self.trained else (0.0, 0.0)
        host = base + GPU_HOST_bytes * self.processes + self.host + checkpoint
        return round(host), round(GPU_BASE_bytes + self.device / 2 + self.exact + trained)

    def asked(self, machine: Machine) -> tuple[float, float]:
        """Of the host and of each GPU: what training is not begun without, or soon ends without."""
        if self.trained is None:
            return 0.0, 0.0
        if machine.device != "cuda":
            return ROOM * self.trained.host(self.processes), 0.0
        return ROOM * self.trained.checkpoint, ROOM * self.trained.gpu


class Cost(NamedTuple):
    """Of one stage, by formula."""

    kind: str
    work: Work
    memory: Memory
    disk: float = 0.0
    """Bytes that it leaves below the work folder, or needs there at once."""
    again: float = 0.0
    """How often it may be done once more, as a share: fallbacks of a gate."""
    scratch: float = 0.0
    """Of `disk`, what is free again once it has ended."""


def gpu_rate(kind: str) -> float:
    """Of a GPU, as a share of an H100's."""
    return next((rate for name, rate in GPU_RATES.items() if name in kind.upper()), GPU_other)
