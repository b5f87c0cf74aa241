"""The trail of a request: what it did, written beside it in the same transaction."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from api.auth import Caller
from api.store import audit


@dataclass(frozen=True)
class Trail:
    """Where a request came from."""

    request_id: str
    address: str

    def note(self, session: Session, caller: Caller, action: str, target: str) -> None:
        """Write down that the caller did `action` (`job.cancel`) to `target` (an id or a name, never a value)."""
        origin = {"request_id": self.request_id, "address": self.address}
        audit.add(session, caller.project_id, caller.key_id, action, target, **origin)


async def trail(request: Request) -> Trail:
    """The trail of this request."""
    return trail_of(request)


def trail_of(request: Request) -> Trail:
    """The same by a plain call."""
    address = request.client.host if request.client else ""
    return Trail(request.scope.get("request_id", ""), address)


TrailDep = Annotated[Trail, Depends(trail)]
