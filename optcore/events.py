"""What the engine says while it runs: one JSON object a line on standard output, discriminated by `event`."""

from typing import Annotated, Literal

from pydantic import Discriminator, TypeAdapter

from optcore.errors import Failure
from optcore.estimate.document import Machine, StageEstimate
from optcore.frozen import Frozen

Phase = Literal[
    "downloading", "hashing", "loading", "calibrating", "searching", "training", "packing", "verifying", "evaluating"
]
MEMORY, GPU_MEMORY = "memory_bytes", "gpu_memory_bytes"
"""Metrics of what a stage's processes hold, by second since it began."""


class RunPlanned(Frozen):
    """The stages to come, in order. Sent again once keys are known better; the last one holds."""

    event: Literal["run_planned"] = "run_planned"
    stages: tuple[str, ...]
    """Names such as `0-fetch`, `1-ptq`, `2-export`, `3-evaluate`: unique in a run, sortable, safe as file names."""


class RunEstimated(Frozen):
    """What the stages to come will take here, said once the model is known. A later one holds."""

    event: Literal["run_estimated"] = "run_estimated"
    machine: Machine
    stages: tuple[StageEstimate, ...]


class RecipeResolved(Frozen):
    """The recipe with commits and data digests pinned: run this one to get the same result again."""

    event: Literal["recipe_resolved"] = "recipe_resolved"
    recipe: dict[str, object]


class StageStarted(Frozen):
    """A stage begins."""

    event: Literal["stage_started"] = "stage_started"
    stage: str
    key: str
    """Content address: equal keys mean equal work."""


class Progress(Frozen):
    """How far the current stage is."""

    event: Literal["progress"] = "progress"
    stage: str
    phase: Phase
    done: int
    total: int


class Metric(Frozen):
    """A measured number."""

    event: Literal["metric"] = "metric"
    stage: str
    name: str
    value: float
    step: int | None = None

    @property
    def is_sample(self) -> bool:
        """Whether a clock asked for it, so that it says nothing of how far the work is."""
        return self.name in (MEMORY, GPU_MEMORY)


class Notice(Frozen):
    """Something a person should know that is no failure."""

    event: Literal["notice"] = "notice"
    stage: str
    message: str


class StageFinished(Frozen):
    """A stage ended well, or was found done."""

    event: Literal["stage_finished"] = "stage_finished"
    stage: str
    key: str
    cached: bool
    """True when the checkpoint was there and nothing was run."""
    seconds: float
    peak_memory_bytes: int
    """Of the host, of all its processes."""
    peak_gpu_memory_bytes: int | None = None
    """That torch reserved on the fullest GPU; None where no GPU was used, or an older engine did not look."""


class RunFinished(Frozen):
    """The artifact is complete in the output folder."""

    event: Literal["run_finished"] = "run_finished"
    digest: str
    """SHA-256 over the checkpoint's files: the same for the same recipe, whatever was interrupted."""


class RunFailed(Frozen):
    """The run ended without an artifact."""

    event: Literal["run_failed"] = "run_failed"
    failure: Failure


AnyEvent = Annotated[
    RunPlanned
    | RunEstimated
    | RecipeResolved
    | StageStarted
    | Progress
    | Metric
    | Notice
    | StageFinished
    | RunFinished
    | RunFailed,
    Discriminator("event"),
]

_adapter: TypeAdapter[AnyEvent] = TypeAdapter(AnyEvent)


def parse_event(line: str | bytes) -> AnyEvent:
    """Read one line; raises `pydantic.ValidationError` when it is no event."""
    return _adapter.validate_json(line)
