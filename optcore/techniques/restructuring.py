"""What the techniques that change what a model is made of have in common: each has a trivial rival."""

from typing import ClassVar, Self

from optcore.techniques.base import Technique


class Restructuring(Technique):
    """A technique after which the model is made of less, or of something else.

    A chain with one is measured after each of its entries, and each such entry beside its trivial rival: the choice
    that a method must beat at the same size, made from the same checkpoint.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"dense"})

    rival_goes_on: ClassVar[bool] = False
    """Whether the rival is made of what this one left, rather than of what this one started from."""

    compare: bool = True
    """Whether the trivial rival at the same size is made and measured too. It costs as much again."""

    @property
    def trivial(self) -> dict[str, object]:
        """The settings that make the trivial rival of the same size out of this; none where this is trivial itself."""
        return {}

    @property
    def rival(self) -> Self | None:
        """What the result must beat; None where there is nothing more trivial, or nobody asked."""
        changes = self.trivial if self.compare else {}
        if all(getattr(self, name) == value for name, value in changes.items()):
            return None
        return self.model_copy(update={**changes, "compare": False, "gate": None})
