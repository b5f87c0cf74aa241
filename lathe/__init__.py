"""Lathe's SDK: submit a recipe, watch the job, take the smaller model home.

with lathe.Client() as client:
    job = client.jobs.create(lathe.load_recipe("recipe.yaml"))
    client.jobs.result(job.id)
    client.artifacts.download(job.id, "out")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lathe.async_client import AsyncClient
    from lathe.client import Client
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
    from lathe.models import (
        Artifact,
        Credential,
        FormatInfo,
        Health,
        Job,
        JobEvent,
        Problem,
        Stage,
        TechniqueInfo,
    )
    from lathe.webhook_models import WebhookDelivery, WebhookEndpoint, WebhookMessage, WebhookPayload
    from lathe.webhooks import unwrap, verify_signature
    from optcore.errors import Failure, RecipeError
    from optcore.recipe import Recipe, load_recipe, parse_recipe

__all__ = [
    "APIError",
    "Artifact",
    "AsyncClient",
    "BadRequest",
    "BadResponse",
    "Client",
    "Conflict",
    "ConnectionFailed",
    "Credential",
    "DigestMismatch",
    "DownloadError",
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
    "NotFound",
    "PayloadTooLarge",
    "Problem",
    "Recipe",
    "RecipeError",
    "RecipeRefused",
    "RequestInProgress",
    "ServerError",
    "Stage",
    "TechniqueInfo",
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
    "load_recipe",
    "parse_recipe",
    "unwrap",
    "verify_signature",
]

_HOMES = (
    *("lathe.errors", "lathe.models", "lathe.webhook_models", "lathe.client", "lathe.async_client", "lathe.webhooks"),
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
