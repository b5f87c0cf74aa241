"""What routes ask for, by type.

Those that wait for nothing are coroutines: for a plain function the framework would ask a thread each time.
"""

from collections.abc import Iterator
from typing import Annotated, cast

from fastapi import Depends, Header, Query, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes
from sqlalchemy.orm import Session

from api import auth
from api.auth import Caller
from api.files import ArtifactStore
from api.listener import Listener
from api.rate_limit import RateLimit
from api.settings import Settings
from api.store.session import Sessions
from lathe.models import Scope

_bearer = HTTPBearer(auto_error=False, description="An API key, `lk_...`.")


async def settings(request: Request) -> Settings:
    """The settings of this application."""
    value: Settings = request.app.state.settings
    return value


async def sessions(request: Request) -> Sessions:
    """Makes sessions, for routes that must not hold one."""
    value: Sessions = request.app.state.sessions
    return value


async def listener(request: Request) -> Listener:
    """Tells when a job has news."""
    value: Listener = request.app.state.listener
    return value


async def store(request: Request) -> ArtifactStore:
    """Where the files of finished jobs are."""
    value: ArtifactStore = request.app.state.store
    return value


def session(make: Annotated[Sessions, Depends(sessions)]) -> Iterator[Session]:
    """One transaction: committed when the route returns, before the answer is sent; rolled back when it raises."""
    with make.begin() as opened:
        yield opened


async def rate_limit(request: Request) -> RateLimit:
    """Counts the requests of each key."""
    value: RateLimit = request.app.state.rate_limit
    return value


def caller(
    make: Annotated[Sessions, Depends(sessions)],
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    limit: Annotated[RateLimit, Depends(rate_limit)],
    security: SecurityScopes,
) -> Caller:
    """Who calls, with a key that has the scopes that the route names.

    Raises `Unauthorized`, `Forbidden` and `TooManyRequests`.
    """
    known = auth.caller_of(make, credentials.credentials if credentials else None)
    for scope in security.scopes:
        known.require(cast("Scope", scope))
    limit.count(known.key_id)
    return known


SettingsDep = Annotated[Settings, Depends(settings)]
SessionsDep = Annotated[Sessions, Depends(sessions)]
SessionDep = Annotated[Session, Depends(session, scope="function")]
StoreDep = Annotated[ArtifactStore, Depends(store)]
ListenerDep = Annotated[Listener, Depends(listener)]
JobReader = Annotated[Caller, Security(caller, scopes=["jobs:read"])]
JobWriter = Annotated[Caller, Security(caller, scopes=["jobs:write"])]
WebhookReader = Annotated[Caller, Security(caller, scopes=["webhooks:read"])]
WebhookWriter = Annotated[Caller, Security(caller, scopes=["webhooks:write"])]
CredentialReader = Annotated[Caller, Security(caller, scopes=["credentials:read"])]
CredentialWriter = Annotated[Caller, Security(caller, scopes=["credentials:write"])]
KeyReader = Annotated[Caller, Security(caller, scopes=["keys:read"])]
KeyWriter = Annotated[Caller, Security(caller, scopes=["keys:write"])]
AuditReader = Annotated[Caller, Security(caller, scopes=["audit:read"])]
AnyCaller = Annotated[Caller, Security(caller)]
LimitDep = Annotated[int, Query(ge=1, le=100, description="Rows of a page.")]
AfterDep = Annotated[str | None, Query(max_length=200, description="`last_id` of the page before.")]
BeforeDep = Annotated[str | None, Query(max_length=200, description="`first_id` of the page behind.")]
IdempotencyKeyDep = Annotated[
    str | None, Header(min_length=1, max_length=255, pattern=r"^[\x20-\x7e]+$", description="Kept for 24 hours.")
]
