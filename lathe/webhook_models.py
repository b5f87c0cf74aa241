"""The wire about webhooks: receivers, messages to them, attempts to deliver those, and the body of a message."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from lathe.models import Wire

WebhookEventType = Literal[
    "job.queued",
    "job.running",
    "job.paused",
    "job.succeeded",
    "job.failed",
    "job.cancelled",
    "stage.succeeded",
    "stage.failed",
    "gate.failed",
    "publish.succeeded",
    "publish.failed",
]
WebhookMessageType = WebhookEventType | Literal["webhook.test"]
WebhookMessageStatus = Literal["pending", "delivered", "failed"]


class WebhookEndpoint(Wire):
    """A receiver of signed messages."""

    id: str
    url: str
    description: str = ""
    events: tuple[WebhookEventType, ...]
    secret: str | None = None
    """`whsec_...`, shown once: when the endpoint is made, and when its secret is rotated."""
    previous_secret_until: datetime | None = None
    """Until then messages are signed with the secret before the rotation as well."""
    enabled: bool = True
    """Whether anything is sent there."""
    disabled_at: datetime | None = None
    disabled_reason: Literal["owner", "gone", "undelivered"] | None = None
    """Your wish, or the receiver answered 410, or message after message was given up."""
    dead_messages: int = 0
    """Messages in a row that were given up."""
    held_until: datetime | None = None
    """Nothing is sent before: the receiver was overloaded, or asked for a pause."""
    created_at: datetime


WebhookUrl = Annotated[str, Field(max_length=2000, pattern=r"^https?://")]
WebhookEvents = Annotated[tuple[WebhookEventType, ...], Field(min_length=1, max_length=50)]
WebhookDescription = Annotated[str, Field(max_length=500)]


class WebhookRequest(BaseModel):
    """Base of the bodies that are posted about webhooks: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class WebhookEndpointCreate(WebhookRequest):
    """A receiver to add."""

    url: WebhookUrl
    events: WebhookEvents = ("job.succeeded", "job.failed", "job.cancelled")
    description: WebhookDescription = ""


class WebhookEndpointUpdate(WebhookRequest):
    """A change of a receiver. What is absent or null stays as it is."""

    url: WebhookUrl | None = None
    """Where messages go from now on, those that wait included."""
    events: WebhookEvents | None = None
    description: WebhookDescription | None = None
    enabled: bool | None = None
    """False: nothing is sent, and what waits is given up when its time comes. True: as if nothing had failed."""


class WebhookReplay(WebhookRequest):
    """Messages to send again: those made from `since` on, before `until`."""

    since: AwareDatetime
    until: AwareDatetime | None = None
    """Absent: up to now."""
    statuses: Annotated[tuple[Literal["delivered", "failed"], ...], Field(min_length=1)] = ("failed",)
    """Only those that were given up, unless `delivered` is named too."""


class WebhookReplayed(Wire):
    """How many messages are sent again."""

    messages: int


class WebhookMessage(Wire):
    """A message to one receiver; the `webhook-id` of every attempt is its id."""

    id: str
    endpoint_id: str
    job_id: str | None
    """Null for a test."""
    type: WebhookMessageType
    status: WebhookMessageStatus
    """`pending` until it was delivered, or given up (`failed`)."""
    attempts: int
    payload: dict[str, Any]
    created_at: datetime


class WebhookDelivery(Wire):
    """One attempt to deliver a message. What the receiver wrote is not kept."""

    message_id: str
    message_status: WebhookMessageStatus
    """What became of the message since."""
    type: WebhookMessageType
    job_id: str | None
    attempt: int
    """1 for the message's first."""
    status_code: int | None
    """What the receiver answered; null when no answer came."""
    error: str | None
    """Why none came."""
    seconds: float
    at: datetime


class WebhookPayload(Wire):
    """The body of a webhook. Trust the highest `sequence`, then get the job."""

    type: WebhookMessageType
    timestamp: datetime
    data: dict[str, Any]
