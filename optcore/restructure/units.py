"""Parts of a model that can be left out one by one, and where they lie in its parameters.

Legend: P parts (channels or heads).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from optcore.restructure.narrower import Change, Moved, Narrower


class Place(NamedTuple):
    """A dimension of a parameter along which parts lie."""

    parameter: str
    dimension: int
    block: int = 1
    """Consecutive entries of each part."""
    copies: int = 1
    """How often all parts follow each other (gate and up in one matrix); what comes after them stays."""

    def entries(self, kept_P: torch.Tensor, parts: int, length: int) -> torch.Tensor:
        """Indices of the entries that stay when of `parts` parts these do; `length` is the dimension's."""
        one = (kept_P[:, None] * self.block + torch.arange(self.block)).flatten()
        starts = torch.arange(self.copies) * parts * self.block
        tail = torch.arange(parts * self.block * self.copies, length)
        return torch.cat([(starts[:, None] + one).flatten(), tail])


@dataclass(frozen=True, eq=False)
class Unit:
    """Parts that are ranked among themselves: the channels of one feed-forward network, the heads of one layer."""

    axis: str
    reader: str
    """The linear whose input they are (down_proj, o_proj); empty for the hidden state, which everything reads."""
    parts: int
    keeps: int
    places: tuple[Place, ...]
    groups: int = 1
    """Ranked, and cut equally, inside each of so many consecutive groups."""


class Heads(NamedTuple):
    """Query heads before and after, and how many groups of them share a key."""

    before: int
    after: int
    groups: int


def reader_units(
    asked: Narrower, axis: str, moved: Moved, heads: Heads | None = None, fused: frozenset[str] = frozenset()
) -> Iterator[Unit]:
    """Units of linears whose input became narrower, each with the parameters that make that input.

    Without `heads`, channels go one by one. `fused` parameters hold all queries, then all keys and values. Raises
    `RecipeError` for what follows in a way that we do not know.
    """
    linears = {f"{path}.weight" for path, module in asked.model.named_modules() if isinstance(module, nn.Linear)}
    inputs = {name: changes[0] for name, changes in moved.items() if changes[0].dimension == 1 and name in linears}
    if not inputs:
        raise asked.refused(axis, "its configuration cannot say it")
    readers = {name.removesuffix(".weight"): change for name, change in inputs.items()}
    under = {folder: reader for reader in reversed(readers) for folder in _above(reader)}
    places: dict[str, list[Place]] = {reader: [] for reader in readers}
    for name, changes in moved.items():
        path = name.rpartition(".")[0]
        reader = path if name in inputs else next((under[folder] for folder in _above(path) if folder in under), "")
        place = _place(name, changes, readers[reader], heads, name in fused) if reader else None
        is_linear = isinstance(asked.model.get_submodule(path), nn.Linear)
        has_one_each = heads is not None and changes[0].before == heads.before  # attention sinks
        if place is None or not (is_linear or has_one_each):
            raise asked.refused(axis, f"{name} follows in a way that we cannot cut")
        places[reader].append(place)
    for reader, change in readers.items():
        parts, keeps, groups = heads or (change.before, change.after, 1)
        yield Unit(axis, reader, parts, keeps, tuple(places[reader]), groups)


def hidden_unit(asked: Narrower, moved: Moved, before: int, after: int) -> Unit:
    """The one unit of the hidden state: all parameters follow in one dimension each."""
    for name, changes in moved.items():
        if [(change.before, change.after) for change in changes] != [(before, after)]:
            raise asked.refused("hidden", f"{name} follows the hidden size in another way (are heads cut out of it?)")
    places = tuple(Place(name, changes[0].dimension) for name, changes in moved.items())
    return Unit("hidden", "", before, after, places)


def norms_in(asked: Narrower, unit: Unit) -> list[str]:
    """Paths of modules with a gain for each hidden channel."""
    vectors = [place.parameter for place in unit.places if len(_shape(asked.model, place.parameter)) == 1]
    owners = [name.removesuffix(".weight") for name in vectors if name.endswith(".weight")]
    return [path for path in owners if not isinstance(asked.model.get_submodule(path), nn.Linear)]


def _place(name: str, changes: list[Change], reader: Change, heads: Heads | None, is_fused: bool) -> Place | None:
    """Where parts lie in a parameter, given what becomes of their reader's input. None where it does not add up."""
    (dimension, before, after), *others = changes
    if others:
        return None
    if heads is None:
        copies = before // reader.before
        fits = before == copies * reader.before and after == copies * reader.after
        return Place(name, dimension, copies=copies) if fits else None
    block = reader.before // heads.before
    if before * heads.after == after * heads.before:
        copies = before // reader.before if is_fused else 1
        return Place(name, dimension, block=before // heads.before // copies, copies=copies)
    # queries first, then the keys and values of a fused matrix
    fits = before - after == (heads.before - heads.after) * block
    return Place(name, dimension, block=block) if fits else None


def _above(path: str) -> Iterator[str]:
    """The folders that a module lies in, from the inside out, itself first."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def _shape(model: nn.Module, name: str) -> tuple[int, ...]:
    path, _, key = name.rpartition(".")
    return tuple(getattr(model.get_submodule(path), key).shape)
