"""What a narrower model will look like: sizes, the parts to choose among, and what refuses, before any heavy work."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from optcore.errors import RecipeError
from optcore.restructure.narrower import Change, Narrower
from optcore.restructure.norms import check_norms
from optcore.restructure.units import Heads, Unit, hidden_unit, norms_in, reader_units

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from optcore.streaming.decoder import Decoder
    from optcore.techniques.prune import Cut, Prune

_FFN_SIZE = re.compile(r"(\w+_)?(intermediate_size|ffn_dim)|hidden_dim")


@dataclass
class Plan:
    """All that will be cut, before anything is known of the weights."""

    config: dict[str, Any]
    """What config.json will say."""
    units: list[Unit] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)
    """Norms over a hidden state that will be narrower."""
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By setting of the configuration, what it was and what it will be."""
    skeleton: "PreTrainedModel | None" = None
    """The narrower model without its weights."""


@torch.no_grad()
def planned(decoder: "Decoder", technique: "Prune", scratch: Path) -> Plan:
    """Ask for each axis of `technique.sliced`. Raises `RecipeError` for what this model cannot lose."""
    asked = Narrower(decoder, scratch)
    plan = Plan(asked.config)
    for axis, cut in technique.sliced.items():
        {"ffn": _cut_ffn, "hidden": _cut_hidden, "heads": _cut_heads}[axis](asked, plan, cut, technique.multiple)
    plan.skeleton = asked.narrowed
    check_norms(decoder, plan.norms)
    if technique.compensate:
        _check_biases(asked, plan)
    return plan


def _cut_ffn(asked: Narrower, plan: Plan, cut: "Cut", multiple: int) -> None:
    """Every setting that is the size of some feed-forward network: dense, of experts, of shared ones."""
    known = {key: value for key, value in asked.known.to_dict().items() if _FFN_SIZE.fullmatch(key)}
    for key, before in known.items():
        if not isinstance(before, int) or before < 1:
            continue
        after = _size("ffn", cut, before, multiple)
        moved = asked.moved(key, after, "ffn")
        if moved:
            plan.units += reader_units(asked, "ffn", moved)
        elif after != before:  # a size of what this model has none of
            asked.revert(key, before)
            continue
        plan.sizes[key] = (before, after)
    if not plan.sizes:
        raise asked.refused("ffn", "its configuration cannot say it")
    if cut.size is not None and len({before for before, _ in plan.sizes.values()}) > 1:
        said = ", ".join(f"{key} {before}" for key, (before, _) in plan.sizes.items())
        raise RecipeError(
            f"one `size` for feed-forward networks of several sizes ({said})", remedy="give a `ratio`", field="/chain"
        )


def _cut_hidden(asked: Narrower, plan: Plan, cut: "Cut", multiple: int) -> None:
    key, heads = asked.key("hidden_size"), getattr(asked.known, "num_attention_heads", None) or 1
    before = int(asked.known.hidden_size)
    # Many families want a hidden size that their heads divide, whatever the size of a head.
    after = _size("hidden", cut, before, math.lcm(multiple, heads))
    asked.keep_head_size()
    unit = hidden_unit(asked, asked.moved(key, after, "hidden"), before, after)
    plan.units.append(unit)
    plan.norms = norms_in(asked, unit)
    plan.sizes[key] = (before, after)


def _cut_heads(asked: Narrower, plan: Plan, cut: "Cut", _: int) -> None:
    if not getattr(asked.known, "num_attention_heads", None):
        raise asked.refused("heads", "its configuration has none")
    key, before = asked.key("num_attention_heads"), int(asked.known.num_attention_heads)
    groups = int(getattr(asked.known, "num_key_value_heads", None) or before)
    if groups == before:
        _cut_whole_heads(asked, plan, Heads(before, one_each(cut, before), 1))
        return
    wanted = cut.size / groups if cut.size is not None else before // groups * (1 - (cut.ratio or 0))
    each = round(wanted)
    if each < 1:
        raise RecipeError(
            f"`heads` cut {cut} leaves a group empty: {groups} groups of {before // groups} share a key each",
            remedy=f"leave at least {groups} heads",
            field="/chain",
        )
    if cut.size is not None and (cut.size % groups or cut.size > before):
        raise RecipeError(
            f"{cut.size} of {before} query heads cannot stay: {groups} groups lose equally many",
            remedy=f"choose a multiple of {groups} up to {before}",
            field="/chain",
        )
    asked.keep_head_size()
    heads = Heads(before, each * groups, groups)
    moved = asked.moved(key, heads.after, "heads")
    plan.sizes[key] = (before, heads.after)
    if heads.after != before:
        plan.units += reader_units(asked, "heads", moved, heads)


def _cut_whole_heads(asked: Narrower, plan: Plan, heads: Heads) -> None:
    """Queries, keys and values together, where each head has its own. What holds all three in one matrix follows both
    settings: the number of keys goes first, since fewer keys than queries are what every family takes."""
    key, keys = asked.key("num_attention_heads"), asked.key("num_key_value_heads")
    asked.keep_head_size()
    of_keys = asked.moved(keys, heads.after, "heads") if hasattr(asked.known, keys) else {}
    of_queries = asked.moved(key, heads.after, "heads")
    both = {
        name: [Change(of_keys[name][0].dimension, of_keys[name][0].before, changes[0].after)]
        for name, changes in of_queries.items()
        if name in of_keys
    }
    plan.sizes[key] = (heads.before, heads.after)
    if heads.after != heads.before:
        plan.units += reader_units(asked, "heads", of_keys | of_queries | both, heads, frozenset(both))


def one_each(cut: "Cut", before: int) -> int:
    """How many of so many heads stay, at least one."""
    return _size("heads", cut, before, 1)


def _size(axis: str, cut: "Cut", before: int, multiple: int) -> int:
    """What stays of an axis; by a ratio, the nearest multiple."""
    if cut.size is not None:
        if cut.size > before:
            raise RecipeError(
                f"`{axis}` cannot be cut to {cut.size}: there are {before}",
                remedy=f"choose at most {before}",
                field="/chain",
            )
        return cut.size
    wanted = before * (1 - (cut.ratio or 0))
    return min(before, max(multiple, round(wanted / multiple) * multiple))


def _check_biases(asked: Narrower, plan: Plan) -> None:
    readers = [unit.reader for unit in plan.units if unit.reader]
    bare = next((reader for reader in readers if asked.model.get_submodule(reader).bias is None), None)
    if bare is not None:
        raise RecipeError(
            f"`compensate` adds to biases, and {bare} of this {asked.name} has none",
            remedy="leave `compensate` out; training after it does more",
            field="/chain",
        )
