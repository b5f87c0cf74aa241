"""What each entry of a chain makes of a model's shapes and number formats."""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from math import lcm

from optcore.calibration.assignment import Assignment
from optcore.estimate.facts import ModelFacts, Tensor, is_expert
from optcore.estimate.stored import Format, Model
from optcore.mixes import fitting
from optcore.tables import tables
from optcore.techniques import (
    AutoQuantize,
    Distill,
    HashShare,
    LowRank,
    Merge,
    Palettize,
    Prune,
    Ptq,
    Sparsify,
    Technique,
    TieLayers,
    Upcycle,
)
from optcore.techniques.prune import Cut
from optcore.techniques.target import Target

Others = Mapping[str, ModelFacts]
"""Further models by JSON Pointer into the recipe."""

_HEADS_OUT = re.compile(
    r"\.(q_proj|query|k_proj|key|v_proj|value|qkv_proj|query_key_value|c_attn|Wqkv|W_pack)\.weight$"
)
_QUERIES = re.compile(r"\.(q_proj|query)\.weight$")
_HEADS_IN = re.compile(r"(attn|attention)\.(o_proj|out_proj|dense|c_proj|wo)\.weight$")
_MLP = re.compile(r"\.(mlp|feed_forward|ffn)\.")


def after(technique: Technique, model: Model, others: Others, place: str) -> Model:
    """The model behind an entry of the chain; `place` is where that stands in the recipe, a JSON Pointer."""
    facts = model.facts
    match technique:
        case Prune():
            return model._replace(facts=pruned(technique, facts))
        case Distill() if technique.student is not None:
            return Model(others.get(f"{place}/student", facts))
        case Merge() if technique.method == "passthrough":
            return model._replace(facts=_stacked(technique, facts))
        case Upcycle():
            return model._replace(facts=_upcycled(technique, facts))
        case AutoQuantize():
            return model._replace(formats={one.name: technique.effective_bits for one in facts.linears})
        case Ptq():
            return model._replace(formats=quantized(technique, technique.scheme, facts))
    return model._replace(compact=model.compact * _compact(technique, facts))


def quantized(technique: Ptq, scheme: str, facts: ModelFacts) -> dict[str, Format]:
    """The number format of each tensor that gets one."""
    assignment, modules = Assignment(scheme, technique), {one.module: one for one in facts.linears}
    assignment.place({name: one.matrix[1] for name, one in modules.items()}, facts.anatomy)
    found: dict[str, Format] = {one.name: own.name for name, one in modules.items() if (own := assignment[name])}
    named = tables(technique.tables, scheme, facts.model_type)
    for one in (tensor for tensor in facts.tensors if tensor.role in ("embedding", "head")):
        asked = named.head if one.role == "head" or facts.tied else named.embedding
        if len(one.shape) == 2 and asked and (own_table := fitting(asked, one.shape[1])):
            found[one.name] = own_table
    return found


def pruned(technique: Prune, facts: ModelFacts) -> ModelFacts:
    """With fewer layers, experts and channels; a searched target by the width that meets it."""
    if technique.target:
        return _meeting(technique.target, facts)
    if technique.experts:
        return _thinner(facts, kept(technique.experts, facts.experts or 1, 1))
    narrowed = _shallower(facts, technique.depth)
    ffn, hidden, heads = (technique.sliced.get(axis) for axis in ("ffn", "hidden", "heads"))
    return _narrower(
        narrowed,
        hidden=kept(hidden, facts.hidden, lcm(technique.multiple, facts.heads)) if hidden else facts.hidden,
        ffn=partial(kept, ffn, multiple=technique.multiple) if ffn else None,
        heads=kept(heads, facts.heads, facts.kv_heads if facts.kv_heads < facts.heads else 1) if heads else facts.heads,
    )


def kept(cut: Cut, before: int, multiple: int) -> int:
    """What stays of an axis, as the engine rounds it."""
    if cut.size is not None:
        return min(before, cut.size)
    wanted = before * (1 - (cut.ratio or 0))
    return min(before, max(multiple, round(wanted / multiple) * multiple))


def _narrower(facts: ModelFacts, *, hidden: int, ffn: Callable[[int], int] | None, heads: int) -> ModelFacts:
    def size(tensor: Tensor, axis: int, length: int) -> int:
        is_output = axis == len(tensor.shape) - 2
        if (is_output and _HEADS_OUT.search(tensor.name)) or (not is_output and _HEADS_IN.search(tensor.name)):
            cut = _QUERIES.search(tensor.name) or _HEADS_IN.search(tensor.name) or facts.kv_heads == facts.heads
            return length * heads // facts.heads if cut else length
        if length == facts.hidden and not (_MLP.search(tensor.name) and length == facts.intermediate):
            return hidden
        if ffn and tensor.layer >= 0 and _MLP.search(tensor.name):
            doubled = 2 if length == 2 * facts.intermediate else 1
            return ffn(length // doubled) * doubled
        return length

    narrowed = (
        one._replace(shape=tuple(size(one, axis, length) for axis, length in enumerate(one.shape)))
        if one.role != "other" or len(one.shape) == 1
        else one
        for one in facts.tensors
    )
    intermediate = ffn(facts.intermediate) if ffn else facts.intermediate
    return facts.with_tensors(narrowed, hidden=hidden, heads=heads, intermediate=intermediate)


def _shallower(facts: ModelFacts, depth: int) -> ModelFacts:
    """Without the last layers but one: which ones go does not change sizes, where layers are alike."""
    gone = range(max(0, facts.layers - 1 - depth), max(0, facts.layers - 1))
    return _renumbered(facts, [layer for layer in range(facts.layers) if layer not in gone]) if depth else facts


def _renumbered(facts: ModelFacts, order: Iterable[int]) -> ModelFacts:
    """With these layers, in this order; a layer may come twice."""
    by_layer: dict[int, list[Tensor]] = {}
    for one in facts.tensors:
        by_layer.setdefault(one.layer, []).append(one)
    tensors = list(by_layer.get(-1, ()))
    for place, layer in enumerate(order):
        for one in by_layer.get(layer, ()):
            tensors.append(one._replace(name=re.sub(rf"\.{layer}\.", f".{place}.", one.name, count=1), layer=place))
    return facts.with_tensors(tensors)


def _thinner(facts: ModelFacts, left: int) -> ModelFacts:
    """With fewer experts."""
    if not facts.experts:
        return facts
    tensors = []
    for one in facts.tensors:
        number = re.search(r"\.experts\.(\d+)\.", one.name)
        if number and int(number[1]) >= left:
            continue
        is_routed = one.role == "router" or (is_expert(one) and len(one.shape) == 3)
        first = left if is_routed and one.shape[0] == facts.experts else one.shape[0] if one.shape else 0
        tensors.append(one._replace(shape=(first, *one.shape[1:])) if one.shape else one)
    return facts.with_tensors(tensors, experts=left, experts_chosen=min(left, facts.experts_chosen))


def _meeting(target: Target, facts: ModelFacts) -> ModelFacts:
    """The widest narrower model of a share of the parameters; of a latency, a share of its layers' work."""
    whole = facts.weight_bytes if target.measure == "bytes" else facts.parameters
    limit = target.limit(whole) if target.measure != "latency" or target.value <= 1 else whole / 2
    for step in range(1, 64):
        cut = Cut(ratio=step / 64)
        narrow = _narrower(facts, hidden=facts.hidden, ffn=partial(kept, cut, multiple=8), heads=facts.heads)
        if (narrow.weight_bytes if target.measure == "bytes" else narrow.parameters) <= limit:
            return narrow
    return facts


def _stacked(technique: Merge, facts: ModelFacts) -> ModelFacts:
    """Layers of several models, one range after the other."""
    order = [layer for part in technique.slices or () for layer in range(*part.layers)]
    return _renumbered(facts, order) if order else facts


def _upcycled(technique: Upcycle, facts: ModelFacts) -> ModelFacts:
    tensors: list[Tensor] = []
    for one in facts.tensors:
        if one.role == "linear" and _MLP.search(one.name):
            head, _, rest = one.name.partition(".mlp.")
            names = (f"{head}.mlp.experts.{number}.{rest}" for number in range(technique.experts))
            tensors += [one._replace(name=name) for name in names]
        else:
            tensors.append(one)
    routers = (
        Tensor(f"layers.{layer}.mlp.gate.weight", (technique.experts, facts.hidden), 2, layer, "router")
        for layer in range(facts.layers)
    )
    return facts.with_tensors([*tensors, *routers], experts=technique.experts, experts_chosen=technique.top_k)


def _compact(technique: Technique, facts: ModelFacts) -> float:
    """What a compact checkpoint's bytes become, as a share."""
    linears = sum(one.elements for one in facts.linears) / max(1, facts.parameters)
    tables = sum(one.elements for one in facts.tensors if one.role == "embedding") / max(1, facts.parameters)
    match technique:
        case Palettize():
            return 1 - linears * (1 - technique.bits / 16)
        case LowRank():
            return 1 - linears * (1 - technique.keep)
        case HashShare():
            return 1 - tables * (1 - technique.ratio)
        case Sparsify():
            zeros = technique.ratio if technique.ratio is not None else 0.5
            return 1 - linears * max(0.0, zeros - 1 / 16)
        case TieLayers():
            return 1 - linears * min(1.0, technique.count / max(1, facts.layers))
    return 1.0
