"""API keys of the project: make, list, revoke."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Response

from api import wire
from api.audit import TrailDep
from api.body import body_of
from api.deps import IdempotencyKeyDep, KeyReader, KeyringDep, KeyWriter, SessionDep, SessionsDep, SettingsDep
from api.errors import Conflict, NotFound
from api.openapi import takes
from api.replay import Answer, Once
from api.store import keys
from lathe.models import ApiKey, ApiKeyCreate, Page

router = APIRouter(prefix="/v1/keys", tags=["keys"])

MAX_KEYS = 100


@router.post("", status_code=201, response_model=ApiKey, openapi_extra=takes(ApiKeyCreate))
def create_key(
    session: SessionDep,
    settings: SettingsDep,
    caller: KeyWriter,
    trail: TrailDep,
    wanted: Annotated[ApiKeyCreate, Depends(body_of(ApiKeyCreate))],
    idempotency_key: IdempotencyKeyDep = None,
) -> Response:
    """Make a key that is allowed no more than the one that asks. It is in this answer and in no other."""
    for scope in wanted.scopes:
        caller.require(scope)
    once = Once(session, settings.vault, caller.project_id, "POST /v1/keys", idempotency_key)

    def make() -> Answer:
        if sum(row.revoked_at is None for row in keys.of(session, caller.project_id)) >= MAX_KEYS:
            raise Conflict(f"the project has {MAX_KEYS} keys already", remedy="revoke one first")
        expires_at = wanted.expires_in_days and datetime.now(UTC) + timedelta(days=wanted.expires_in_days)
        row, key = keys.create(
            session, caller.project_id, name=wanted.name, scopes=wanted.scopes, expires_at=expires_at or None
        )
        trail.note(session, caller, "key.create", row.id)
        return Answer.made(f"/v1/keys/{row.id}", wire.key(row, key))

    return once.answer(wanted, make)


@router.get("")
def list_keys(session: SessionDep, caller: KeyReader) -> Page[ApiKey]:
    """The project's keys, newest first, without the keys themselves."""
    rows = keys.of(session, caller.project_id)
    return wire.page([wire.key(row) for row in rows], [row.id for row in rows])


@router.delete("/{key_id}", status_code=204)
def revoke_key(sessions: SessionsDep, keyring: KeyringDep, caller: KeyWriter, trail: TrailDep, key_id: str) -> None:
    """Refuse a key from now on."""
    with sessions.begin() as session:
        if keys.revoke(session, caller.project_id, key_id) is None:
            raise NotFound("no such key in use", remedy="list yours with GET /v1/keys")
        trail.note(session, caller, "key.revoke", key_id)
    keyring.forget()  # at once; other processes as soon as the database has told them
