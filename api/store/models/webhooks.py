"""Tables of webhooks: receivers, the messages for them, the attempts to deliver those."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from api.store.models.base import Row, count, created, one_of, project_key


class WebhookEndpoint(Row):
    """A receiver of signed messages."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (
        one_of("disabled_reason", "owner", "gone", "undelivered"),
        Index(None, "project_id", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = project_key()
    url: Mapped[str]
    events: Mapped[list[str]]
    description: Mapped[str] = mapped_column(server_default="")
    sealed_secret: Mapped[str]
    previous_sealed_secret: Mapped[str | None]
    """Signs beside the new one for a while after a rotation."""
    previous_secret_until: Mapped[datetime | None]
    dead_messages: Mapped[int] = count()
    """Messages in a row that were given up."""
    held_until: Mapped[datetime | None]
    """Nothing is sent before: the receiver was overloaded, or asked for a pause."""
    created_at: Mapped[datetime] = created()
    disabled_at: Mapped[datetime | None]
    """Nothing is sent at all."""
    disabled_reason: Mapped[str | None]
    """Its owner's wish, or the receiver said that it is gone, or message after message was given up."""


class WebhookMessage(Row):
    """One payload for one endpoint; its id is the `webhook-id` of every attempt."""

    __tablename__ = "webhook_messages"
    __table_args__ = (
        one_of("status", "pending", "delivered", "failed"),
        Index(None, "endpoint_id", "created_at"),
        Index("webhook_messages_wake_idx", "wake_at", postgresql_where=text("status = 'pending'")),
        Index("webhook_messages_over_idx", "created_at", postgresql_where=text("status <> 'pending'")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id", ondelete="CASCADE"))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    """Absent for a test message."""
    type: Mapped[str]
    payload: Mapped[dict[str, Any]]
    status: Mapped[str] = mapped_column(server_default="pending")
    attempts: Mapped[int] = count()
    earlier_attempts: Mapped[int] = count()
    """Those before its owner last asked for it again: the delays begin anew."""
    asked_at: Mapped[datetime] = created()
    """When it was made, or last asked for again."""
    wake_at: Mapped[datetime] = created()
    """When a message that nobody sent is announced again."""
    created_at: Mapped[datetime] = created()


class WebhookDelivery(Row):
    """One attempt to deliver a message. Bodies of answers are never kept."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index("webhook_deliveries_log_idx", "endpoint_id", "at", "message_id", "attempt"),
        Index("webhook_deliveries_at_idx", "at"),
    )

    message_id: Mapped[str] = mapped_column(ForeignKey("webhook_messages.id", ondelete="CASCADE"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    endpoint_id: Mapped[str]
    """The message's, so that an endpoint's log is read from one index."""
    status_code: Mapped[int | None]
    error: Mapped[str | None]
    seconds: Mapped[float]
    at: Mapped[datetime] = created()
