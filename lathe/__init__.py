"""Lathe's SDK: submit a recipe, watch the job, take the smaller model home.

with lathe.Client() as client:
    job = client.jobs.create(lathe.load_recipe("recipe.yaml")).watch()
    job.download("out")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lathe.async_client import AsyncClient
    from lathe.async_job import AsyncJob
    from lathe.client import Client
    from lathe.comparison_models import Comparison
    from lathe.errors import (
        APIError,
        BadRequest,
        BadResponse,
        Conflict,
        ConnectionFailed,
        DigestMismatch,
        DownloadError,
        Forbidden,
        JobCancelled,
        JobFailed,
        JobNotSucceeded,
        LatheError,
        NotFound,
        PayloadTooLarge,
        RecipeRefused,
        RequestInProgress,
        ServerError,
        TooManyRequests,
        Unauthorized,
        Unprocessable,
        UnsafePath,
        WaitTimeout,
        WebhookVerificationError,
    )
    from lathe.estimate_models import Estimate
    from lathe.job import Job
    from lathe.models import (
        ApiKey,
        Artifact,
        AuditEntry,
        Credential,
        FormatInfo,
        Health,
        JobEvent,
        LogChunk,
        MetricCurve,
        Problem,
        Project,
        Stage,
        TechniqueInfo,
        Template,
        WorkerInfo,
    )
    from lathe.report import Measurements, Report
    from lathe.webhook_models import WebhookDelivery, WebhookEndpoint, WebhookMessage, WebhookPayload
    from lathe.webhooks import unwrap, verify_signature
    from optcore.errors import Failure, RecipeError
    from optcore.recipe import Recipe, load_recipe, parse_recipe

__all__ = [
    "APIError",
    "ApiKey",
    "Artifact",
    "AsyncClient",
    "AsyncJob",
    "AuditEntry",
    "BadRequest",
    "BadResponse",
    "Client",
    "Comparison",
    "Conflict",
    "ConnectionFailed",
    "Credential",
    "DigestMismatch",
    "DownloadError",
    "Estimate",
    "Failure",
    "Forbidden",
    "FormatInfo",
    "Health",
    "Job",
    "JobCancelled",
    "JobEvent",
    "JobFailed",
    "JobNotSucceeded",
    "LatheError",
    "LogChunk",
    "Measurements",
    "MetricCurve",
    "NotFound",
    "PayloadTooLarge",
    "Problem",
    "Project",
    "Recipe",
    "RecipeError",
    "RecipeRefused",
    "Report",
    "RequestInProgress",
    "ServerError",
    "Stage",
    "TechniqueInfo",
    "Template",
    "TooManyRequests",
    "Unauthorized",
    "Unprocessable",
    "UnsafePath",
    "WaitTimeout",
    "WebhookDelivery",
    "WebhookEndpoint",
    "WebhookMessage",
    "WebhookPayload",
    "WebhookVerificationError",
    "WorkerInfo",
    "load_recipe",
    "parse_recipe",
    "unwrap",
    "verify_signature",
]

_HOMES = (
    # The first that has a name is its home: `Job` is the client's, not the wire's.
    *("lathe.errors", "lathe.job", "lathe.models", "lathe.webhook_models", "lathe.client", "lathe.async_client"),
    *("lathe.async_job", "lathe.webhooks", "lathe.report", "lathe.estimate_models", "lathe.comparison_models"),
    "optcore.recipe",
)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that `lathe up` and the workers start without httpx."""
    if name in __all__:
        for home in _HOMES:
            module = import_module(home)
            if hasattr(module, name):
                globals()[name] = getattr(module, name)
                return globals()[name]
    raise AttributeError(f"module 'lathe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
