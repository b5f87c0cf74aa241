"""Fields of a submitted form of which some may be there more than once, as ticked boxes are."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from api.dashboard.form import read_pairs

MAX_FIELDS = 64
MAX_bytes = 64 * 1024


@dataclass(frozen=True)
class Posted:
    """Names and values, in the order of the page."""

    pairs: tuple[tuple[str, str], ...]

    def one(self, name: str) -> str:
        """The last value of that name, without white space around it; empty where there is none."""
        return ([value for key, value in self.pairs if key == name] or [""])[-1].strip()

    def all(self, name: str) -> tuple[str, ...]:
        """Every value of that name."""
        return tuple(value for key, value in self.pairs if key == name)


async def posted(request: Request) -> Posted:
    """The form's fields, bounded. Raises the error that says why not."""
    return Posted(tuple(await read_pairs(request, MAX_FIELDS, MAX_bytes)))


PostedDep = Annotated[Posted, Depends(posted)]
