"""Hub tokens: their names, a new or another token, and forgetting one. The tokens themselves are never shown."""

from fastapi import APIRouter, Response
from pydantic import TypeAdapter, ValidationError

from api.audit import TrailDep
from api.auth import Caller
from api.dashboard.pages import PageRoute
from api.dashboard.posted import PostedDep
from api.dashboard.session import OURS, ViewerDep
from api.dashboard.settings_frame import back, complaint, lacking, settings_page, status_of
from api.deps import SessionsDep, SettingsDep
from api.errors import ServiceError
from api.routes import credentials
from api.routes.credentials import CredentialPut, NameDep
from api.store.session import Sessions

router = APIRouter(prefix="/settings/credentials", route_class=PageRoute, include_in_schema=False)

PAGE = "/settings/credentials"
_name: TypeAdapter[str] = TypeAdapter(NameDep)


@router.get("")
def show_credentials(sessions: SessionsDep, viewer: ViewerDep, did: str | None = None) -> Response:
    """The names of the tokens."""
    return lacking(viewer, "credentials:read") or _credentials(sessions, viewer, did=did)


@router.post("", dependencies=[OURS])
def put_credential(
    sessions: SessionsDep, settings: SettingsDep, viewer: ViewerDep, trail: TrailDep, posted: PostedDep
) -> Response:
    """Store a token under a name, or replace it."""
    viewer.require("credentials:write")
    named = posted.one("name")
    try:
        wanted, name = CredentialPut(token=posted.one("token")), _name.validate_python(named)
        with sessions.begin() as session:
            credentials.put_credential(session, settings, viewer, trail, name, wanted)
    except ValidationError:
        said = "A name is up to 200 letters, digits, spaces and . _ -; a token is printable and has no spaces."
        return _credentials(sessions, viewer, status=422, complaint=said, name=named)
    except ServiceError as error:
        return _credentials(sessions, viewer, status=status_of(error), complaint=complaint(error), name=named)
    return back(PAGE, "stored")


@router.post("/delete", dependencies=[OURS])
def delete_credential(sessions: SessionsDep, viewer: ViewerDep, trail: TrailDep, posted: PostedDep) -> Response:
    """Forget a token."""
    viewer.require("credentials:write")
    with sessions.begin() as session:
        credentials.delete_credential(session, viewer, trail, posted.one("name"))
    return back(PAGE, "forgotten")


def _credentials(
    sessions: Sessions,
    viewer: Caller,
    *,
    status: int = 200,
    did: str | None = None,
    complaint: str | None = None,
    name: str = "",
) -> Response:
    with sessions() as session:
        shown = credentials.list_credentials(session, viewer).data if "credentials:read" in viewer.scopes else ()
    return settings_page(
        "settings_credentials.html", viewer, status=status, did=did, complaint=complaint, credentials=shown, name=name
    )
