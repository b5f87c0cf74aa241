"""What ties an answer to the client that it came from."""

from typing import Generic, TypeVar

from lathe.errors import LatheError

S = TypeVar("S")


class Bond(Generic[S]):
    """No part of the value that has it: equal answers are equal whoever got them, and a pickle takes no client (and no
    key) along."""

    def __init__(self, service: S | None = None) -> None:
        self._service = service

    @property
    def service(self) -> S:
        """Raises `LatheError` for a value that no client answered: one that was unpickled, say."""
        if self._service is None:
            raise LatheError("this job is tied to no client", remedy="ask for it again: `client.jobs.get(job.id)`")
        return self._service

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bond)

    def __hash__(self) -> int:
        return hash(Bond)

    def __deepcopy__(self, memo: object) -> "Bond[S]":
        return self

    def __reduce__(self) -> "tuple[type[Bond[S]], tuple[()]]":
        return Bond, ()
