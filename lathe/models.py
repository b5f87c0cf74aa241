"""The wire: what the API answers and the SDK reads. One definition; `api` imports it, so there is no second schema."""

from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field

from optcore.errors import Failure
from optcore.estimate.document import StageEstimate
from optcore.events import Phase
from optcore.recipe import Recipe

JobStatus = Literal["queued", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled"]
StageStatus = Literal["pending", "running", "succeeded", "cached", "failed", "cancelled"]
PublishStatus = Literal["not_requested", "pending", "uploading", "published", "failed"]

Scope = Literal[
    "jobs:read",
    "jobs:write",
    "webhooks:read",
    "webhooks:write",
    "credentials:read",
    "credentials:write",
    "keys:read",
    "keys:write",
    "audit:read",
]
SCOPES: tuple[Scope, ...] = get_args(Scope)
"""What an API key may be allowed: reading or changing one kind of thing."""

TERMINAL: frozenset[JobStatus] = frozenset({"succeeded", "failed", "cancelled"})


class Wire(BaseModel):
    """Read with tolerance for keys that a newer server adds."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)


class Stage(Wire):
    """One resumable step of a job."""

    name: str
    status: StageStatus
    phase: Phase | None = None
    """What a running stage is doing."""
    done: int = 0
    total: int = 0
    key: str | None = None
    """Content address: equal keys mean equal work, so a finished one is never run again."""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    """Of the host, of all the stage's processes."""
    peak_gpu_memory_bytes: int | None = None
    """On the fullest GPU; absent where none was used."""
    estimate: StageEstimate | None = None
    """What it was expected to take, once the worker knows the model."""


class Attempt(Wire):
    """One claim of a job by a worker."""

    epoch: int
    """Rises with each claim; what an older one writes is refused."""
    run_number: int
    worker_id: str
    host: str
    gpus: int
    state: Literal["running", "succeeded", "failed", "cancelled", "lost", "released", "paused"]
    """`lost`: the worker or its machine went away. `released`: it stopped and handed the job back."""
    failure: Failure | None
    started_at: datetime
    finished_at: datetime | None


class Waiting(Wire):
    """Why a queued job is not running yet."""

    reason: Literal["no_worker", "project_limit", "after_loss", "in_line"]
    message: str
    ahead: int
    """Queued jobs of every project that come first by priority and time; counted to 1000."""


class PublishState(Wire):
    """The push to the Hub: a state of its own, so an upload error never costs a finished run."""

    status: PublishStatus
    url: str | None = None
    commit: str | None = None
    failure: Failure | None = None


class Money(Wire):
    """A sum in one currency."""

    amount: float
    currency: str
    """Three letters."""


class Job(Wire):
    """One run of a recipe."""

    id: str
    object: Literal["job"] = "job"
    name: str | None
    status: JobStatus
    is_terminal: bool
    """Loops must test this, not a list of names."""
    recipe: Recipe
    """As posted, defaults filled in."""
    resolved: dict[str, Any] | None
    """The recipe with commits and digests pinned, once the worker knows them."""
    run_number: int = 1
    """Raised by each retry."""
    attempt: int
    """How many times a worker has claimed the job, in all of its runs."""
    waiting: Waiting | None = None
    """Of a queued job that is looked at."""
    cost: Money | None = None
    """Of a job that is looked at: what its time on machines costs so far, at the service's prices of now.

    Every attempt counts, also one that was lost. Absent where a machine has no price.
    """
    stages: tuple[Stage, ...]
    failure: Failure | None
    artifact_digest: str | None
    """SHA-256 over the checkpoint's files."""
    publish: PublishState
    attempts: tuple[Attempt, ...] | None = None
    """With `expand=attempts`."""
    artifacts: tuple["Artifact", ...] | None = None
    """With `expand=artifacts`."""
    metadata: dict[str, str]
    created_at: datetime
    started_at: datetime | None
    """First claim by a worker, in whichever run."""
    finished_at: datetime | None
    run_seconds: float = 0
    """In workers' hands, by those attempts of this run that are over: neither waits nor pauses nor earlier runs."""
    claimed_at: datetime | None = None
    """Begin of the attempt that is under way; null where no worker has the job."""


class JobEvent(Wire):
    """One line of a job's history. `seq` has no gaps, and is the id of the server-sent event."""

    seq: int
    at: datetime
    type: str
    """An engine event such as `stage_started`, or a change of the job such as `job.running`."""
    data: dict[str, Any]


class Artifact(Wire):
    """One file of the result."""

    path: str
    """Relative to the artifact, with `/`; also its address below `/v1/jobs/{id}/artifacts/`."""
    bytes: int
    sha256: str


class LogChunk(Wire):
    """What the engine wrote on standard error in a second or so."""

    seq: int
    epoch: int
    """Of the attempt that wrote it."""
    at: datetime
    text: str


class MetricCurve(Wire):
    """One measured number of a stage over its steps, thinned by the server: neighbouring steps are one point."""

    stage: str
    name: str
    first_step: tuple[int, ...]
    last_step: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    last: tuple[float, ...]
    """As measured at `last_step`."""


class ApiKey(Wire):
    """A key that speaks for the project, within its scopes."""

    id: str
    name: str
    prefix: str
    """The key's first characters, to recognize it by."""
    key: str | None = None
    """`lk_...`, shown once when the key is made."""
    scopes: tuple[Scope, ...]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    """To the minute."""


class ApiKeyCreate(BaseModel):
    """A key to make. It can be allowed no more than the key that asks for it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: Annotated[str, Field(max_length=100, pattern=r"^[^\x00]*$")] = ""
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1, max_length=len(SCOPES))]
    expires_in_days: Annotated[int, Field(ge=1, le=3650)] | None = None


class Project(Wire):
    """The tenant that the key speaks for, its limits and what it uses of them. An absent limit does not bind."""

    id: str
    name: str
    max_running: int | None
    """Jobs that workers hold at one time; more wait."""
    max_unfinished: int | None
    """Jobs that are not over; more are refused."""
    max_storage_bytes: int | None
    max_gpu_seconds: int | None
    """In 30 days."""
    unfinished: int
    storage_bytes: int
    gpu_seconds: float
    """In the last 30 days."""


class AuditEntry(Wire):
    """Who did what, and when."""

    id: int
    at: datetime
    actor: str
    """Id of an API key, or `operator`."""
    action: str
    """Such as `job.cancel`."""
    target: str
    request_id: str
    address: str


T = TypeVar("T")


class Page(Wire, Generic[T]):
    """A page of a list, newest first; ask for the next one with `after=last_id`."""

    # For `Page[X]` pydantic would look for docstrings in the source of whoever writes that, and may fail to read it.
    model_config = ConfigDict(use_attribute_docstrings=False)

    object: Literal["list"] = "list"
    data: tuple[T, ...]
    has_more: bool
    first_id: str | None
    last_id: str | None


class ProblemError(Wire):
    """One reason in a problem."""

    pointer: str
    """JSON Pointer to the place in the request body."""
    reason: str


class Problem(Wire):
    """RFC 9457 problem details, with our extensions."""

    type: str
    title: str
    status: int
    detail: str = ""
    code: str
    """A stable name for programs."""
    remedy: str = ""
    errors: tuple[ProblemError, ...] = ()
    request_id: str = ""
    retryable: bool = False


class TechniqueInfo(Wire):
    """A technique that a recipe's chain may name."""

    name: str
    title: str
    description: str
    paper: str
    needs: tuple[str, ...]
    leaves: tuple[str, ...]
    json_schema: dict[str, Any]


class FormatInfo(Wire):
    """A number format, and which targets can hold it."""

    name: str
    title: str
    kind: Literal["weights", "kv_cache"]
    targets: tuple[str, ...]
    engines: dict[str, tuple[str, ...]]
    """Engines that load it, by target."""


class WorkerInfo(Wire):
    """A worker process and the machine that it runs engines on."""

    id: str
    host: str
    device: Literal["cuda", "cpu"] | None
    """Absent for one that runs no engine."""
    gpus: int
    gpu_kind: str | None
    gpu_memory_bytes: int | None
    host_memory_bytes: int | None = None
    cores: int | None = None
    disk_free_bytes: int | None = None
    status: Literal["idle", "busy", "draining", "unfit", "quarantined", "away"]
    reason: str = ""
    """Why it takes no job, where it does not."""
    job_id: str | None = None
    """What it works on, where that job is yours."""
    started_at: datetime
    seen_at: datetime


class Template(Wire):
    """A recipe to start from, for a purpose that people name."""

    name: str
    """Such as `fit-on-8-gb`."""
    title: str
    description: str
    recipe: dict[str, Any]
    """A recipe without a model, or with an example of one."""


class Credential(Wire):
    """A stored Hub token, by name. The token itself is never answered."""

    name: str
    created_at: datetime
    updated_at: datetime


class Health(Wire):
    """Whether the service can take work."""

    status: Literal["ok", "degraded"]
    database: bool
    broker: bool | None = None
