"""The wire of estimates: what a job will take, and where it fits."""

from typing import Literal, NamedTuple

from lathe.models import Wire
from optcore.estimate.document import Machine, ResultEstimate, StageEstimate


class EstimateProblem(Wire):
    """Why a job cannot be run, or may not go well."""

    pointer: str
    """JSON Pointer into the recipe."""
    reason: str
    remedy: str = ""
    fatal: bool = True
    """False for what may still go well."""
    of_machine: bool = False
    """Whether another machine might do: it is too small or too slow, or not what the recipe asks for."""


class WorkerFit(Wire):
    """Whether a job fits on one worker, and what it would take there."""

    worker_id: str
    host: str
    machine: Machine
    fits: bool
    reasons: tuple[str, ...] = ()
    """Why not, in words."""
    seconds: float
    cost: float | None = None
    """In the currency of the estimate; absent where no price is set."""


class ResultSizes(NamedTuple):
    """What one result would weigh: from the least to the most of the candidates of a goal or a sweep."""

    result: str
    format: str
    least_bytes: int
    most_bytes: int


class Estimate(Wire):
    """What a job will take, foreseen before anything is run: on the worker that suits it best, or comes nearest."""

    object: Literal["estimate"] = "estimate"
    allowed_to_proceed: bool
    """False when submitting the job would be refused, or no registered worker could ever finish it."""
    problems: tuple[EstimateProblem, ...] = ()
    machine: Machine
    """What the figures are for."""
    stages: tuple[StageEstimate, ...] = ()
    results: tuple[ResultEstimate, ...] = ()
    source_bytes: int | None = None
    """Weights of the source model."""
    seconds: float = 0
    seconds_low: float = 0
    seconds_high: float = 0
    host_memory_bytes: int = 0
    gpu_memory_bytes: int = 0
    """Peak on each GPU."""
    disk_bytes: int = 0
    cost: float | None = None
    cost_low: float | None = None
    cost_high: float | None = None
    """Absent where the service has no price for the machine."""
    currency: str | None = None
    learned_from: int = 0
    """Finished stages that the constants were corrected by."""
    workers: tuple[WorkerFit, ...] = ()

    @property
    def sizes(self) -> tuple[ResultSizes, ...]:
        """Each result once, whatever number of candidates could leave it."""
        found: dict[tuple[str, str], list[int]] = {}
        for each in self.results:
            found.setdefault((each.result, each.format), []).append(each.weight_bytes)
        return tuple(ResultSizes(*named, min(sizes), max(sizes)) for named, sizes in found.items())
