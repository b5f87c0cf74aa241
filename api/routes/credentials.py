"""Hub tokens: stored under a name, replaced, removed; never shown."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from api import wire
from api.audit import TrailDep
from api.body import body_of
from api.deps import CredentialReader, CredentialWriter, SessionDep, SettingsDep
from api.errors import Conflict, NotFound
from api.openapi import takes
from api.store import credentials
from lathe.models import Credential, Page

router = APIRouter(prefix="/v1/credentials", tags=["credentials"])

MAX_CREDENTIALS = 100
NameDep = Annotated[str, Path(max_length=200, pattern=r"^[\w][\w .-]*$")]


class CredentialPut(BaseModel):
    """A token to store."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    token: Annotated[str, StringConstraints(max_length=500, pattern=r"^[\x21-\x7e]+$")] = Field(repr=False)


@router.put("/{name}", openapi_extra=takes(CredentialPut))
def put_credential(
    session: SessionDep,
    settings: SettingsDep,
    caller: CredentialWriter,
    trail: TrailDep,
    name: NameDep,
    wanted: Annotated[CredentialPut, Depends(body_of(CredentialPut))],
) -> Credential:
    """Store a token under a name, or replace it. Recipes refer to it as `publish.credential`."""
    trail.note(session, caller, "credential.put", name)
    stored = credentials.of(session, caller.project_id)
    if len(stored) >= MAX_CREDENTIALS and name not in {row.name for row in stored}:
        raise Conflict(f"you have {MAX_CREDENTIALS} credentials already", remedy="remove one first")
    return wire.credential(credentials.put(session, settings.vault, caller.project_id, name, wanted.token))


@router.get("")
def list_credentials(session: SessionDep, caller: CredentialReader) -> Page[Credential]:
    """The names of your tokens."""
    rows = credentials.of(session, caller.project_id)
    return wire.page([wire.credential(row) for row in rows], [row.name for row in rows])


@router.delete("/{name}", status_code=204)
def delete_credential(session: SessionDep, caller: CredentialWriter, trail: TrailDep, name: NameDep) -> None:
    """Forget a token."""
    if not credentials.remove(session, caller.project_id, name):
        raise NotFound("you have no credential of that name", remedy="list yours with GET /v1/credentials")
    trail.note(session, caller, "credential.delete", name)
