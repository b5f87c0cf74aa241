"""The wire: what the API answers and the SDK reads. One definition; `api` imports it, so there is no second schema."""

from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field

from optcore.errors import Failure
from optcore.events import Phase
from optcore.recipe import Recipe

JobStatus = Literal["queued", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled"]
StageStatus = Literal["pending", "running", "succeeded", "cached", "failed", "cancelled"]
PublishStatus = Literal["not_requested", "pending", "uploading", "published", "failed"]
WebhookEventType = Literal["job.succeeded", "job.failed", "job.cancelled", "publish.succeeded", "publish.failed"]

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


class PublishState(Wire):
    """The push to the Hub: a state of its own, so an upload error never costs a finished run."""

    status: PublishStatus
    url: str | None = None
    commit: str | None = None
    failure: Failure | None = None


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
    attempt: int
    """How many times a worker has claimed the job."""
    stages: tuple[Stage, ...]
    failure: Failure | None
    artifact_digest: str | None
    """SHA-256 over the checkpoint's files."""
    publish: PublishState
    metadata: dict[str, str]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


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


class WebhookEndpoint(Wire):
    """A receiver of signed messages."""

    id: str
    url: str
    events: tuple[WebhookEventType, ...]
    secret: str | None = None
    """`whsec_...`, shown once when the endpoint is made."""
    created_at: datetime


class WebhookEndpointCreate(BaseModel):
    """A receiver to add."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    url: Annotated[str, Field(max_length=2000, pattern=r"^https?://")]
    events: tuple[WebhookEventType, ...] = ("job.succeeded", "job.failed", "job.cancelled")


class WebhookPayload(Wire):
    """The body of a webhook. Trust the highest `sequence`, then get the job."""

    type: WebhookEventType
    timestamp: datetime
    data: dict[str, Any]


T = TypeVar("T")


class Page(Wire, Generic[T]):
    """A page of a list, newest first; ask for the next one with `after=last_id`."""

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
