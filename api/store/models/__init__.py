"""The tables, one file a subject."""

from api.store.models.base import Row
from api.store.models.jobs import ACTIVE, Artifact, Attempt, Event, Job, LogChunk, MetricPoint, Stage
from api.store.models.machine import Host, Lease, OutboxMessage, Removal, StageCost, Tally, Worker
from api.store.models.tenants import ApiKey, AuditEntry, Credential, IdempotencyKey, Project
from api.store.models.webhooks import WebhookDelivery, WebhookEndpoint, WebhookMessage

__all__ = [
    "ACTIVE",
    "ApiKey",
    "Artifact",
    "Attempt",
    "AuditEntry",
    "Credential",
    "Event",
    "Host",
    "IdempotencyKey",
    "Job",
    "Lease",
    "LogChunk",
    "MetricPoint",
    "OutboxMessage",
    "Project",
    "Removal",
    "Row",
    "Stage",
    "StageCost",
    "Tally",
    "WebhookDelivery",
    "WebhookEndpoint",
    "WebhookMessage",
    "Worker",
]
