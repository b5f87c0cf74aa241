"""What routes ask for, by type.

Those that wait for nothing are coroutines: for a plain function the framework would ask a thread each time.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, cast

from fastapi import Depends, Header, Query, Request, Security
from fastapi.openapi.models import HTTPBearer as HTTPBearerModel
from fastapi.security import SecurityScopes
from fastapi.security.base import SecurityBase
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.auth import Caller, Keyring
from api.errors import BadRequest
from api.files import ArtifactStore
from api.listener import Listener
from api.pace import Pace
from api.settings import Settings
from api.state import state_of
from api.store.session import Sessions
from lathe.models import Scope


async def settings(request: Request) -> Settings:
    """The settings of this application."""
    return state_of(request).settings


async def sessions(request: Request) -> Sessions:
    """Makes sessions, for routes that must not hold one."""
    return state_of(request).sessions


async def listener(request: Request) -> Listener:
    """Tells when a job has news."""
    return state_of(request).listener


async def pace(request: Request) -> Pace:
    """What live pages may take of this process."""
    return state_of(request).pace


async def store(request: Request) -> ArtifactStore:
    """Where the files of finished jobs are."""
    return state_of(request).store


async def keyring(request: Request) -> Keyring:
    """Knows who calls."""
    return state_of(request).keyring


def session(request: Request) -> Iterator[Session]:
    """One transaction: committed when the route returns, before the answer is sent; rolled back when it raises."""
    with state_of(request).sessions.begin() as opened:
        yield opened


class ApiKeyBearer(SecurityBase):
    """Who calls, with a key that has the scopes that the route names: one dependency, not a chain of three."""

    def __init__(self) -> None:
        self.scheme_name = "HTTPBearer"
        self.model = HTTPBearerModel(description="An API key, `lk_...`.")

    async def __call__(self, request: Request, security: SecurityScopes) -> Caller:
        """Raises `Unauthorized`, `Forbidden` and `TooManyRequests`."""
        return await self.caller(request, security.scopes)

    async def caller(self, request: Request, scopes: Sequence[str]) -> Caller:
        """The same for a route that asks itself."""
        state = state_of(request)
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            key = ""
        known = state.keyring.remembered(key)
        if known is None:
            known = await run_in_threadpool(state.keyring.caller, key)
        for scope in scopes:
            known.require(cast("Scope", scope))
        await state.rate_limit.count(known.key_id)
        return known


bearer = ApiKeyBearer()

SettingsDep = Annotated[Settings, Depends(settings)]
SessionsDep = Annotated[Sessions, Depends(sessions)]
SessionDep = Annotated[Session, Depends(session, scope="function")]
KeyringDep = Annotated[Keyring, Depends(keyring)]
StoreDep = Annotated[ArtifactStore, Depends(store)]
ListenerDep = Annotated[Listener, Depends(listener)]
PaceDep = Annotated[Pace, Depends(pace)]
JobReader = Annotated[Caller, Security(bearer, scopes=["jobs:read"])]
JobWriter = Annotated[Caller, Security(bearer, scopes=["jobs:write"])]
WebhookReader = Annotated[Caller, Security(bearer, scopes=["webhooks:read"])]
WebhookWriter = Annotated[Caller, Security(bearer, scopes=["webhooks:write"])]
CredentialReader = Annotated[Caller, Security(bearer, scopes=["credentials:read"])]
CredentialWriter = Annotated[Caller, Security(bearer, scopes=["credentials:write"])]
KeyReader = Annotated[Caller, Security(bearer, scopes=["keys:read"])]
KeyWriter = Annotated[Caller, Security(bearer, scopes=["keys:write"])]
AuditReader = Annotated[Caller, Security(bearer, scopes=["audit:read"])]
AnyCaller = Annotated[Caller, Security(bearer)]
LimitDep = Annotated[int, Query(ge=1, le=100, description="Rows of a page.")]
AfterDep = Annotated[str | None, Query(max_length=200, description="`last_id` of the page before.")]
BeforeDep = Annotated[str | None, Query(max_length=200, description="`first_id` of the page behind.")]
IDEMPOTENCY_KEY = r"^[\x20-\x7e]+$"
IDEMPOTENCY_KEY_characters = 255
_KEY_HEADER = Header(
    min_length=1, max_length=IDEMPOTENCY_KEY_characters, pattern=IDEMPOTENCY_KEY, description="Kept for 24 hours."
)
IdempotencyKeyDep = Annotated[str | None, _KEY_HEADER]


def idempotency_key_of(request: Request) -> str | None:
    """The same for a route that reads it itself. Raises `BadRequest`."""
    key = request.headers.get("idempotency-key")
    if key is not None and (len(key) > IDEMPOTENCY_KEY_characters or not re.fullmatch(IDEMPOTENCY_KEY, key)):
        raise BadRequest(
            f"header parameter idempotency-key: 1 to {IDEMPOTENCY_KEY_characters} characters of ASCII",
            remedy="see /openapi.json for what it may be",
        )
    return key
