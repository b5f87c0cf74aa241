"""The trail of a request: what it did, written beside it in the same transaction."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from api.auth import Caller
from api.deps import SessionDep
from api.store import audit


@dataclass(frozen=True)
class Trail:
    """Where a request came from."""

    session: Session
    request_id: str
    address: str

    def note(self, caller: Caller, action: str, target: str) -> None:
        """Write down that the caller did `action` (`job.cancel`) to `target` (an id or a name, never a value)."""
        origin = {"request_id": self.request_id, "address": self.address}
        audit.add(self.session, caller.project_id, caller.key_id, action, target, **origin)


async def trail(request: Request, session: SessionDep) -> Trail:
    """The trail of this request."""
    address = request.client.host if request.client else ""
    return Trail(session, request.scope.get("request_id", ""), address)


TrailDep = Annotated[Trail, Depends(trail)]
