"""What each decoder layer may lose, and what it costs: its attention, and channels of its feed-forward network."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from optcore.errors import RecipeError
from optcore.restructure.units import Unit
from optcore.restructure.width_plan import planned
from optcore.streaming.groups import linears, probe_state
from optcore.streaming.simulate import rounded
from optcore.techniques.prune import Cut, Prune

if TYPE_CHECKING:
    from optcore.streaming.decoder import Decoder, State
    from optcore.techniques.puzzle import Puzzle


@dataclass(frozen=True, eq=False)
class Part:
    """The attention, or the feed-forward network, of one layer."""

    index: int
    kind: Literal["attention", "ffn"]
    shares: tuple[float, ...]
    """What may stay of it."""
    ends: tuple[str, ...]
    """Parameters that are zero when nothing stays, besides those of `units`."""
    ends_cost: int
    units: tuple[Unit, ...] = ()
    """Networks whose channels go one by one: one, or that of each expert."""
    channel_costs: tuple[int, ...] = ()
    """By unit, of one channel."""
    multiple: int = 1

    def counts(self, share: float) -> tuple[int, ...]:
        """By unit, how many channels a share of them is."""
        return tuple(self._count(unit.parts, share) for unit in self.units)

    def cost(self, share: float) -> int:
        """Parameters or bytes of what stays."""
        channels = zip(self.counts(share), self.channel_costs, strict=True)
        return sum(count * cost for count, cost in channels) + (self.ends_cost if share else 0)

    @property
    def touched(self) -> set[str]:
        """Parameters that a choice may change."""
        return {place.parameter for unit in self.units for place in unit.places} | {*self.ends}

    def _count(self, channels: int, share: float) -> int:
        if share in (0, 1):
            return round(share) * channels
        return min(channels, max(self.multiple, round(channels * share / self.multiple) * self.multiple))


@dataclass(frozen=True)
class Parts:
    """Of the whole model."""

    parts: tuple[Part, ...]
    totals: tuple[int, ...]
    """By layer, all its parameters or bytes."""
    by_number: bool
    """Whether that is parameters."""

    def of(self, index: int) -> list[Part]:
        """A layer's."""
        return [part for part in self.parts if part.index == index]

    def kind(self, kind: str) -> list[Part]:
        """All attentions, or all feed-forward networks."""
        return [part for part in self.parts if part.kind == kind]

    @property
    def total(self) -> int:
        """Parameters or bytes of all decoder layers."""
        return sum(self.totals)

    @property
    def fixed(self) -> int:
        """What no choice changes, such as norms and routers."""
        return self.total - sum(part.cost(1) for part in self.parts)

    def left(self, chosen: Mapping[Part, float], layers: Sequence[int]) -> int:
        """What these layers take with these shares of their parts."""
        gone = sum(part.cost(1) - part.cost(chosen[part]) for index in layers for part in self.of(index))
        return sum(self.totals[index] for index in layers) - gone

    @property
    def smallest(self) -> int:
        """What the layers take when every part keeps as little as it may."""
        return self.fixed + sum(part.cost(min(part.shares)) for part in self.parts)


@torch.no_grad()
def find_parts(decoder: "Decoder", technique: "Puzzle", scratch: Path) -> Parts:
    """Ask the model. Raises `RecipeError` where its feed-forward networks cannot be cut by channels."""
    try:
        plan = planned(decoder, Prune(ffn=Cut(ratio=0.5), multiple=1), scratch)
    except RecipeError as error:
        raise RecipeError(error.message, remedy="leave out layers: `prune` with `depth`", field="/chain") from error
    probe = probe_state(decoder)
    costs = dict(_costs(decoder, by_number=technique.target.bytes is None))
    found: list[Part] = []
    for index in range(len(decoder)):
        units = tuple(unit for unit in plan.units if unit.reader.startswith(f"{decoder.layer_name(index)}."))
        if technique.attention:
            with decoder.layer(index) as layer:
                zeroed = _attention(decoder, index, layer, units, probe)
            if zeroed:
                found.append(Part(index, "attention", (1, 0), zeroed, sum(costs[name] for name in zeroed)))
        if units:
            found.append(_ffn(decoder, index, units, technique, costs))
    names = [f"{decoder.layer_name(index)}." for index in range(len(decoder))]
    totals = tuple(sum(cost for path, cost in costs.items() if path.startswith(name)) for name in names)
    return Parts(tuple(found), totals, technique.target.bytes is None)


def _ffn(
    decoder: "Decoder", index: int, units: tuple[Unit, ...], technique: "Puzzle", costs: Mapping[str, int]
) -> Part:
    ends = tuple(f"{unit.reader}.bias" for unit in units if f"{unit.reader}.bias" in costs)
    of_units: list[int] = []
    for unit in units:
        shares = [
            (costs[place.parameter] // decoder.model.get_parameter(place.parameter).shape[place.dimension])
            * (place.block * place.copies)
            for place in unit.places
        ]
        of_units.append(sum(shares))
    ends_cost = sum(costs[name] for name in ends)
    return Part(index, "ffn", technique.ffn, ends, ends_cost, units, tuple(of_units), technique.multiple)


def _costs(decoder: "Decoder", *, by_number: bool) -> Iterator[tuple[str, int]]:
    """Parameters of the layers, and how many numbers or bytes each is."""
    inside = decoder.layer_name(0).removesuffix("0")
    for name, parameter in decoder.model.named_parameters():
        if name.startswith(inside):
            stored = decoder.reader.dtype(decoder.names.sources[name].stored)
            yield name, parameter.numel() * (1 if by_number else stored.itemsize)


def _attention(
    decoder: "Decoder", index: int, layer: nn.Module, units: tuple[Unit, ...], probe: "State"
) -> tuple[str, ...]:
    """Parameters of the linears that mix tokens: of a layer's children that have nothing to do with a feed-forward
    network. None unless, with the last linear of each zeroed, the others make no difference to what the layer gives.
    """
    prefix = f"{decoder.layer_name(index)}."
    taken = {_child(place.parameter.removeprefix(prefix)) for unit in units for place in unit.places}
    mine = {path: module for path, module in linears(layer).items() if _child(path) not in taken}
    last: dict[str, str] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, __, path=path: last.update({_child(path): path}))
        for path, module in mine.items()
    ]
    decoder.forward(index, layer, probe)
    for handle in handles:
        handle.remove()
    own = {f"{path}.{key}": value.data for path, one in mine.items() for key, value in one.named_parameters()}
    zeros = {name: torch.zeros_like(value) for name, value in own.items()}
    writers = {name: zeros[name] for name in own if name.rpartition(".")[0] in last.values()}
    with rounded(layer, {}, zeros):
        without = decoder.forward(index, layer, probe).hidden_BTH
    with rounded(layer, {}, {**own, **writers}):
        is_same = torch.equal(decoder.forward(index, layer, probe).hidden_BTH, without)
    return tuple(f"{prefix}{name}" for name in own) if is_same else ()


def _child(path: str) -> str:
    return path.partition(".")[0]
