"""A POST that is done once, however often it arrives: its answer is kept with what it did, in one transaction."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import Response
from pydantic import BaseModel
from sqlalchemy.orm import Session

from api.store import idempotency
from api.vault import Vault
from optcore.frozen import Frozen, digest_of


class Answer(Frozen):
    """A 201 with the address of what was made, or a 200 where nothing was."""

    location: str | None = None
    body: str
    """JSON."""

    @classmethod
    def made(cls, location: str, made: BaseModel) -> "Answer":
        """Something new, from its wire model."""
        return cls(location=location, body=made.model_dump_json())

    @classmethod
    def of(cls, changed: BaseModel) -> "Answer":
        """Something that was there before, as it is now."""
        return cls(body=changed.model_dump_json())

    def response(self, *, replayed: bool = False) -> Response:
        """The HTTP answer."""
        headers = {"Idempotent-Replayed": "true"} if replayed else {}
        if self.location is None:
            return Response(self.body, media_type="application/json", headers=headers)
        headers["Location"] = self.location
        return Response(self.body, status_code=201, media_type="application/json", headers=headers)


@dataclass(frozen=True)
class Once:
    """One request of one owner to one route, with its Idempotency-Key, if any."""

    session: Session
    vault: Vault
    project_id: str
    route: str
    key: str | None

    def answer(self, document: Any, make: Callable[[], Answer]) -> Response:
        """The stored answer, else the one that `make` gives. Raises `IdempotencyMismatch` for another document."""
        if self.key is None:
            return make().response()
        place = idempotency.place(self.project_id, self.route, self.key)
        stored = idempotency.begin(self.session, self.project_id, self.route, self.key, digest_of(document))
        if stored is not None:
            return Answer.model_validate_json(self.vault.open(stored, place)).response(replayed=True)
        made = make()
        sealed = self.vault.seal(made.model_dump_json(), place)
        idempotency.store(self.session, self.project_id, self.route, self.key, sealed)
        return made.response()
