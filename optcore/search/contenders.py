"""The candidates of a recipe that stands for several chains: each a recipe of its own, which runs alone as well."""

from collections.abc import Iterator
from typing import NamedTuple, TypeVar

from optcore.errors import OptError, RecipeError
from optcore.evaluate import Classification, Engines, Fidelity, Throughput
from optcore.recipe import Recipe
from optcore.search.menu import menu
from optcore.search.objective import MAX_CANDIDATES, MAX_ENTRIES, Chain, Objective
from optcore.search.sweep import FIELDS, Swept, swept

_Error = TypeVar("_Error", bound=OptError)


class Contender(NamedTuple):
    """One candidate, as it was asked for."""

    number: int
    """From 1, in the order in which they begin."""
    recipe: Recipe
    """Without objective and sweep, its whole chain spelled out."""
    shared: int
    """Entries of the chain that are the recipe's own; those behind them are the candidate's."""
    listed: int | None
    """Its place in `objective.candidates`; None where nobody listed it there."""
    is_planned: bool
    """Whether the planner thought of it."""
    sweeps: str
    """What the sweep set, for people."""

    @property
    def name(self) -> str:
        """Short, sortable, safe in a file name."""
        return f"c{self.number:02d}"

    @property
    def said(self) -> str:
        """The chain in one line for people."""
        chain = ", ".join(entry.summary for entry in self.recipe.chain)
        return f"{chain} ({self.sweeps})" if self.sweeps else chain

    def place(self, pointer: str) -> str:
        """Where a place of its recipe stands in the one that stands for all; itself where that is the same."""
        parts = pointer.split("/")
        if self.listed is None or parts[:2] != ["", "chain"] or len(parts) < 3 or int(parts[2]) < self.shared:
            return pointer
        own = [str(int(parts[2]) - self.shared), *parts[3:]]
        return "/".join(["", "objective", "candidates", str(self.listed), *own])

    def origin(self, pointer: str) -> str:
        """What of the recipe that stands for all is behind a place of its recipe: where nobody wrote that, the sweep or
        the goal that it comes from."""
        root = pointer.split("/")[1:2]
        if self.listed is None and self.sweeps and (not root or root[0] in FIELDS):
            return "/sweep"
        if root == ["chain"] and not self._is_written(pointer):
            return "/objective" if self.listed is None else f"/objective/candidates/{self.listed}"
        return self.place(pointer)

    def _is_written(self, pointer: str) -> bool:
        """Whether a place of its chain is one of the recipe that stands for all."""
        number = pointer.split("/")[2:3]
        return bool(number) and (self.listed is not None or int(number[0]) < self.shared)

    def located(self, error: _Error) -> _Error:
        """An error of its recipe as one of the recipe that stands for all."""
        return type(error)(self.saying(error.message), remedy=error.remedy, field=self.origin(error.field))

    def saying(self, message: str) -> str:
        """What is said of its recipe, with what the sweep set in it."""
        return f"with {self.sweeps}: {message}" if self.sweeps else message


def contenders(recipe: Recipe) -> tuple[Contender, ...]:
    """All of them, whether they fit or not; none for a recipe of one chain. Raises `RecipeError`."""
    if not recipe.is_race:
        return ()
    _check_comparable(recipe)
    found = [(each, chain, listed, is_planned) for each in swept(recipe) for listed, chain, is_planned in _chains(each)]
    if len(found) > MAX_CANDIDATES:
        raise RecipeError(
            f"the recipe stands for {len(found)} candidates, and a run has room for {MAX_CANDIDATES}",
            remedy="sweep fewer values, or list fewer chains",
            field="/sweep",
        )
    return tuple(
        _contender(number, each, chain, listed, is_planned)
        for number, (each, chain, listed, is_planned) in enumerate(found, start=1)
    )


def goal(recipe: Recipe) -> Objective:
    """What is asked for; a sweep by itself asks for the front, and for its best quality."""
    return recipe.objective or Objective()


def _chains(each: Swept) -> Iterator[tuple[int | None, Chain, bool]]:
    asked = each.recipe.objective
    if asked is None:
        yield None, (), False
    elif asked.candidates:
        yield from ((place, chain, False) for place, chain in enumerate(asked.candidates))
    else:
        yield from ((None, chain, True) for chain in menu(each.recipe))


def _contender(number: int, each: Swept, chain: Chain, listed: int | None, is_planned: bool) -> Contender:
    whole = (*each.recipe.chain, *chain)
    if len(whole) > MAX_ENTRIES:
        raise RecipeError(
            f"{len(whole)} entries follow one another, and a chain has room for {MAX_ENTRIES}",
            remedy="leave entries out",
            field="/chain" if listed is None else f"/objective/candidates/{listed}",
        )
    recipe = each.recipe.model_copy(update={"objective": None, "chain": whole})
    return Contender(number, recipe, len(each.recipe.chain), listed, is_planned, each.said)


def _check_comparable(recipe: Recipe) -> None:
    """Refuse what the recipe's evaluators could not tell apart."""
    asked = goal(recipe)
    if not any(isinstance(evaluator, Fidelity | Classification) for evaluator in recipe.evaluate):
        raise RecipeError(
            "candidates are compared by their quality, which nothing in `evaluate` measures",
            remedy="add a `fidelity` entry (of a classifier, `classification`)",
            field="/evaluate",
        )
    if asked.max_kl is not None and not any(isinstance(evaluator, Fidelity) for evaluator in recipe.evaluate):
        raise RecipeError(
            "nothing in `evaluate` measures KL", remedy="add a `fidelity` entry", field="/objective/max_kl"
        )
    if asked.is_about_speed and not any(isinstance(one, Throughput | Engines) for one in recipe.evaluate):
        field = "min_tokens_per_second" if asked.min_tokens_per_second is not None else "minimize"
        raise RecipeError(
            "nothing in `evaluate` measures speed", remedy="add a `throughput` entry", field=f"/objective/{field}"
        )
