"""What a push is made of: the branches that it changes, and what is known of their pull requests."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from optcore.references import Place
from worker.hub_files import Files

Numbers = dict[str, int]
"""Of pull requests, by `repository@branch`."""


class Target(NamedTuple):
    """A branch of a repository, and what it should hold."""

    place: Place
    head: str
    """The branch's commit when we looked."""
    files: Files
    title: str

    @property
    def repo_id(self) -> str:
        """The repository, with its owner."""
        return self.place.repo_id

    @property
    def name(self) -> str:
        """Tells the targets of a push apart."""
        return f"{self.place.repo_id}@{self.place.branch}"


class Pushed(NamedTuple):
    """A target whose files are on the Hub."""

    target: Target
    commit: str
    number: int | None
    """The pull request that holds them; None when the branch has them already."""


@dataclass
class Memory:
    """What is known of a push's pull requests beyond the life of this process."""

    numbers: Numbers
    keep: Callable[[Numbers], None]
    """Store them. Raises when another worker has taken the push over."""

    def number(self, target: Target) -> int | None:
        """The one that was opened for a target."""
        return self.numbers.get(target.name)

    def note(self, target: Target, number: int | None) -> None:
        """Keep a number, or forget it."""
        others = {name: known for name, known in self.numbers.items() if name != target.name}
        self.numbers = others | ({target.name: number} if number else {})
        self.keep(self.numbers)

    def still_ours(self) -> None:
        """Raises when another worker has taken the push over."""
        self.keep(self.numbers)
