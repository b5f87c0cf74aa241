"""Who asks, and what they may see: tokens, private and gated repositories."""

import base64
import binascii
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from fastapi import Request

from demo.hub.refusal import Refusal, no_repository
from demo.hub.repository import PULL, Repository
from demo.hub.store import Store


class User(NamedTuple):
    """The owner of a token."""

    name: str
    role: Literal["write", "read"] = "write"


@dataclass
class Door:
    """Lets a request through to a repository, or refuses it as the Hub would."""

    store: Store
    users: dict[str, User] = field(default_factory=dict)
    """By token."""

    def who(self, request: Request) -> User | None:
        """The user of the request, nobody for a request without a token."""
        token = _token(request.headers.get("authorization", ""))
        if token is None:
            return None
        if token not in self.users:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.users[token]

    def signed_in(self, request: Request) -> User:
        """The user of a request that needs one."""
        user = self.who(request)
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        return user

    def to_see(self, request: Request, kind: str, id: str) -> Repository:
        """A repository whose existence the user may know."""
        user, repository = self.who(request), self.store.find(kind, id)
        if repository is None or (repository.state["private"] and not _owns(user, repository)):
            raise no_repository(user is None)
        return repository

    def to_read(self, request: Request, kind: str, id: str) -> Repository:
        """A repository whose files the user may read."""
        repository, user = self.to_see(request, kind, id), self.who(request)
        granted = user is not None and user.name in repository.state["granted"]
        if repository.state["gated"] and not _owns(user, repository) and not granted:
            message = f"Access to {kind[:-1]} {id} is restricted. You must have access to it and be authenticated."
            raise Refusal(403 if user else 401, message, code="GatedRepo")
        return repository

    def to_propose(self, request: Request, kind: str, id: str) -> Repository:
        """A repository that the user may open a pull request on: whoever may read it."""
        user, repository = self.signed_in(request), self.to_read(request, kind, id)
        if user.role != "write":
            raise Refusal(403, f"You don't have the rights to propose changes to {id}")
        return repository

    def to_push(self, request: Request, kind: str, id: str, revision: str) -> Repository:
        """A repository of which the user may change a revision: the owner any, the author a pull request."""
        number = revision.removeprefix(PULL) if revision.startswith(PULL) else ""
        pull = self.to_propose(request, kind, id).state["pulls"].get(number)
        if pull is not None and pull["author"] == self.signed_in(request).name:
            return self.to_propose(request, kind, id)
        return self.to_write(request, kind, id)

    def to_write(self, request: Request, kind: str, id: str) -> Repository:
        """A repository that the user may change."""
        self.signed_in(request)
        repository, user = self.to_see(request, kind, id), self.signed_in(request)
        if not _owns(user, repository) or user.role != "write":
            raise Refusal(403, f"You don't have the rights to write to {id}")
        return repository


def _owns(user: User | None, repository: Repository) -> bool:
    return user is not None and user.name == repository.state["owner"]


def _token(header: str) -> str | None:
    """The token of a bearer, or the password of a person in front of a browser."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        raise Refusal(401, "Invalid credentials in Authorization header") from None
