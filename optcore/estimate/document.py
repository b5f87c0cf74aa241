"""An estimate as documents: what a machine has, what was learned of it, and what a recipe will take there."""

from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import Field

from optcore.frozen import Frozen


class Machine(Frozen):
    """What a stage runs on, as far as its cost depends on it. An absent size is not known, and sets no limit."""

    device: Literal["cuda", "cpu"] = "cpu"
    gpus: int = Field(default=0, ge=0)
    gpu_kind: str = ""
    """Name of its GPUs as the driver says it, such as `NVIDIA H200`."""
    gpu_memory_bytes: int | None = None
    """Of the smallest GPU."""
    host_memory_bytes: int | None = None
    """That one engine may use."""
    cores: int = Field(default=1, ge=1)
    """That one engine may use."""
    disk_free_bytes: int | None = None
    """Below the engine's work folder."""

    @property
    def kind(self) -> str:
        """Machines of one kind share what was learned of their speed, such as `cuda:NVIDIA H200` or `cpu:16`."""
        return f"cuda:{self.gpu_kind}" if self.device == "cuda" else f"cpu:{self.cores}"


class StageCostSeen(Frozen):
    """One finished stage: what the formulas said of it before anything was learned, and what it took."""

    machine: str
    """`Machine.kind`."""
    kind: str
    """`StageEstimate.kind`."""
    raw_seconds: float = Field(gt=0)
    seconds: float = Field(gt=0)
    raw_memory_bytes: int = Field(gt=0)
    memory_bytes: int = Field(gt=0)


class StageEstimate(Frozen):
    """What one stage will take."""

    stage: str
    """Its name, as in the plan."""
    kind: str
    """Stages of one kind cost alike for their size, such as `ptq gptq` or `evaluate fidelity`: what is learned of one
    helps to foresee another."""
    seconds: float = Field(ge=0)
    seconds_low: float = Field(ge=0)
    seconds_high: float = Field(ge=0)
    """Nine of ten such stages are expected between the two."""
    host_memory_bytes: int = Field(ge=0)
    """Peak of the stage's process."""
    gpu_memory_bytes: int = Field(default=0, ge=0)
    """Peak on each GPU."""
    disk_bytes: int = Field(default=0, ge=0)
    """That it needs below the work folder."""
    scratch_bytes: int = Field(default=0, ge=0)
    """Of these, what is free again once it has ended."""
    raw_seconds: float = Field(ge=0)
    """By the formula and its shipped constants alone."""
    raw_memory_bytes: int = Field(ge=0)
    """The same for the memory that `StageCostSeen` compares: the host's."""
    learned_from: int = Field(default=0, ge=0)
    """Finished stages that the constants were corrected by."""


class ResultEstimate(Frozen):
    """What one result will weigh."""

    result: str = ""
    """Its name; the main one has none."""
    candidate: str = ""
    """Of a goal or a sweep, the name of the candidate that it would be of."""
    format: str
    """Of the target."""
    weight_bytes: int = Field(ge=0)


class Problem(Frozen):
    """Why a recipe cannot be run, or not there."""

    field: str = ""
    """JSON Pointer into the recipe."""
    message: str
    remedy: str = ""
    fatal: bool = True
    """False for what may still go well."""
    of_machine: bool = False
    """Whether another machine might do: it is too small or too slow, or not what the recipe asks for."""
    lacks: Literal["", "memory", "disk"] = ""
    """What the machine has too little of, where that is why."""


class Estimate(Frozen):
    """What a recipe will take on one machine."""

    machine: Machine
    stages: tuple[StageEstimate, ...]
    results: tuple[ResultEstimate, ...]
    problems: tuple[Problem, ...] = ()
    places: Mapping[str, str] = {}
    """Where in the recipe what causes a stage stands, by the stage's name: JSON Pointers."""

    def of(self, stage: str) -> StageEstimate | None:
        """What one stage will take; None for one that was not foreseen."""
        return next((each for each in self.stages if each.stage == stage), None)

    def weight_bytes_of(self, result: str) -> int | None:
        """What one result will weigh, by its name; None for one that was not foreseen."""
        return next((each.weight_bytes for each in self.results if each.result == result), None)

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def host_memory_bytes(self) -> int:
        """Peak of the largest stage."""
        return max((stage.host_memory_bytes for stage in self.stages), default=0)

    @property
    def gpu_memory_bytes(self) -> int:
        """Peak on each GPU of the largest stage."""
        return max((stage.gpu_memory_bytes for stage in self.stages), default=0)

    @property
    def disk_bytes(self) -> int:
        """Of all stages, at the worst moment."""
        return peak_disk(self.stages)

    @property
    def fits(self) -> bool:
        """Whether nothing stands against it on this machine."""
        return not any(problem.fatal for problem in self.problems)


def peak_disk(stages: Iterable[StageEstimate]) -> int:
    """Bytes that stages one after the other need at the worst moment: what a finished one leaves stays until the run
    has ended."""
    held = peak = 0
    for stage in stages:
        peak = max(peak, held + stage.disk_bytes)
        held += stage.disk_bytes - stage.scratch_bytes
    return peak
