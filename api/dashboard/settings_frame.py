"""What the pages of the settings share: their tabs, what the reader's key lacks, and complaints about a form."""

from typing import Any

from fastapi import Response
from fastapi.responses import RedirectResponse
from pydantic import ValidationError

from api.auth import Caller
from api.dashboard.pages import page
from api.errors import ServiceError
from lathe.models import Scope

TABS = (
    ("/settings", "Project"),
    ("/settings/keys", "API keys"),
    ("/settings/credentials", "Hub tokens"),
    ("/settings/webhooks", "Webhooks"),
    ("/settings/audit", "Audit log"),
)
DONE = {
    "revoked": "The key is revoked: it is refused from now on.",
    "stored": "The token is stored.",
    "forgotten": "The token is forgotten.",
    "changed": "Saved.",
    "enabled": "Enabled: messages are sent again.",
    "disabled": "Disabled: nothing is sent.",
    "removed": "The endpoint is removed.",
    "tested": "A test is on its way; its delivery shows below.",
    "redelivered": "The message is sent again, now.",
    "replayed": "The messages of that period are sent again.",
    "nothing": "No message of that period is in that state: nothing was sent.",
}
"""What was done before the reader was led back; the address names it, and cannot say anything else."""


def settings_page(
    template: str, viewer: Caller, *, status: int = 200, did: str | None = None, **values: Any
) -> Response:
    """A page of the settings."""
    frame = {"tabs": TABS, "scopes": viewer.scopes, "done": DONE.get(did or "")}
    return page(template, status=status, viewer=viewer.project_name, **{"complaint": None, **frame, **values})


def lacking(viewer: Caller, scope: Scope) -> Response | None:
    """The page that says why there is nothing to see, for a key without the scope."""
    if scope in viewer.scopes:
        return None
    return settings_page("settings_refused.html", viewer, status=403, scope=scope)


def back(path: str, did: str) -> Response:
    """To a page that then says what was done."""
    return RedirectResponse(f"{path}?did={did}", status_code=303)


def complaint(error: ValidationError | ServiceError) -> str:
    """What there is to correct, in one sentence that quotes no value."""
    if isinstance(error, ServiceError):
        text = ". ".join(part[:1].upper() + part[1:] for part in (error.message, error.remedy) if part)
        return f"{text}."
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"][:1])
    return f"{where}: {first['msg']}." if where else f"{first['msg']}."


def status_of(error: ValidationError | ServiceError) -> int:
    """The HTTP status of the page that complains."""
    return error.status if isinstance(error, ServiceError) else 422
