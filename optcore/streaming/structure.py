"""Where a layer's channels can be rescaled without changing what it computes, found by trying and never from names.

A *fold* divides the output channels of a producer by s and multiplies the input columns of its consumers by s
(SmoothQuant, arXiv:2211.10438; AWQ, arXiv:2306.00978). Producers are norms, and linears whose output channels reach
their consumer one by one: v -> o, through attention and repeated KV heads, and up -> down. A fold is only returned
after random scales left the output of the smallest module around it as it was.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import torch
from torch import nn

from optcore.streaming.decoder import Decoder, State
from optcore.streaming.groups import fused_groups, linears
from optcore.streaming.replay import Recording, common_ancestor, has_rows_of

# How much of the change that an uncompensated producer makes may be left: float32 noise, and nothing else.
_LEFT = 1e-3
_NOISE = 4e-6
_OFFSETS = (0.0, 1.0)
# Channels of a linear are tried this large, or a clamp or a bend that is flat near zero would pass for proportional.
_LARGE = 2.0**10


@dataclass(frozen=True, eq=False)
class Fold:
    """A producer and everything that reads its output. Paths are relative to the layer."""

    kind: Literal["norm", "linear"]
    producer: str
    groups: tuple[tuple[str, ...], ...]
    """The fused groups of linears that read it: one, or with a norm before experts one per expert."""
    routers: tuple[str, ...]
    """Modules that read it too and are never quantized."""
    rows_K: torch.Tensor
    """The producer's output channel behind each input channel of the consumers."""
    offset: float = 0.0
    """What a norm adds to its weight before it multiplies (1 in Gemma)."""
    parameters: tuple[str, ...] = ()
    """The producer's own parameters that change."""

    @property
    def consumers(self) -> tuple[str, ...]:
        """Every linear in `groups`."""
        return tuple(path for group in self.groups for path in group)

    @property
    def changed(self) -> tuple[str, ...]:
        """Parameters that `apply` changes besides the weights of `consumers`."""
        return (*self.parameters, *(f"{path}.weight" for path in self.routers))

    @cached_property
    def _reach(self) -> int:
        """How many of the producer's output channels there are at least."""
        return int(self.rows_K.max()) + 1

    def tie(self, s_K: torch.Tensor) -> torch.Tensor:
        """The nearest scales [K] that the producer can take: one per output channel, the largest of its readers'."""
        rows_K = self.rows_K.to(s_K.device, non_blocking=True)
        largest_N = torch.zeros(self._reach, device=s_K.device)
        return largest_N.scatter_reduce_(0, rows_K, s_K.float(), "amax", include_self=False)[rows_K]

    def per_row(self, s_K: torch.Tensor, outputs: int) -> torch.Tensor:
        """The scale of each of the producer's output channels: 1 where no consumer reads it."""
        return torch.ones(outputs, device=s_K.device).index_copy(0, self.rows_K.to(s_K.device), s_K.float())

    def apply(self, layer: nn.Module, s_K: torch.Tensor, stored: torch.dtype | None = None) -> torch.Tensor:
        """Rescale the layer in memory by positive, tied s [K]; returns the s that was really applied.

        With `stored`, the type that a norm's weight will be written in, s moves by up to its rounding so that the
        written norm and the consumers (quantized from float32) still cancel exactly.
        """
        module = layer.get_submodule(self.producer)
        if self.kind == "norm":
            s_K = self._divide_norm(module, s_K.float(), stored)
        else:
            self._divide_rows(module, s_K.float())
        for path in (*self.consumers, *self.routers):
            weight = layer.get_submodule(path).weight
            weight.data = (weight.data.float() * s_K).to(weight.dtype)
        return s_K

    def _divide_norm(self, norm: nn.Module, s_K: torch.Tensor, stored: torch.dtype | None) -> torch.Tensor:
        gain_K = norm.weight.data.float() + self.offset
        weight_K = gain_K / s_K - self.offset
        if stored is not None:
            weight_K = weight_K.to(stored).float()
            kept_K = weight_K + self.offset
            s_K = torch.where((kept_K == 0) | (gain_K == 0), s_K, gain_K / kept_K)
        norm.weight.data = weight_K.to(norm.weight.dtype)
        if getattr(norm, "bias", None) is not None:
            norm.bias.data = (norm.bias.data.float() / s_K).to(norm.bias.dtype)
        return s_K

    def _divide_rows(self, linear: nn.Module, s_K: torch.Tensor) -> None:
        s_N = self.per_row(s_K, linear.weight.shape[0])
        linear.weight.data = (linear.weight.data.float() / s_N[:, None]).to(linear.weight.dtype)
        if linear.bias is not None:
            linear.bias.data = (linear.bias.data.float() / s_N).to(linear.bias.dtype)


def folds(
    decoder: Decoder, index: int, layer: nn.Module, probe: State, known: Sequence[Fold] | None = None
) -> list[Fold]:
    """Every fold of a layer in memory that holds when tried; no linear is a consumer in two of them.

    `known` are those of a layer of the same modules: where all of them hold here too, nothing else is looked for, since
    a search makes the host wait for a GPU a hundred times.
    """
    recording = Recording(decoder, index, layer, probe)
    if known and all(_holds(recording, fold) for fold in known):
        return list(known)
    groups = fused_groups(decoder, index, recording.layer, recording.probe)
    found = [fold for fold in _norm_folds(recording, groups) if _holds(recording, fold)]
    taken = {path for fold in found for path in fold.consumers}
    heads = _heads(decoder)
    for group in groups:
        if not taken.intersection(group):
            candidates = _linear_folds(recording, tuple(group), heads)
            found += [fold for fold in candidates if _holds(recording, fold)][:1]
    return found


def _norm_folds(recording: Recording, groups: list[list[str]]) -> Iterator[Fold]:
    """Norms whose output is what some linears are given, with everything that has a matrix and is given it too."""
    layer, calls = recording.layer, recording.calls
    for path, module in layer.named_modules():
        offset = norm_offset(module, partial(recording.replay, path)) if path in calls else None
        if offset is None:
            continue
        out = calls[path].output
        readers = [name for name, reader in layer.named_modules() if _reads(recording, name, reader, out)]
        fed = tuple(tuple(group) for group in groups if set(group) <= set(readers))
        consumers = {name for group in fed for name in group}
        if fed:
            yield Fold(
                kind="norm",
                producer=path,
                groups=fed,
                routers=tuple(name for name in readers if name not in consumers),
                rows_K=torch.arange(out.shape[-1]),
                offset=offset,
                parameters=tuple(f"{path}.{key}" for key, _ in module.named_parameters(recurse=False)),
            )


def _reads(recording: Recording, path: str, module: nn.Module, source: torch.Tensor) -> bool:
    """Whether a module has a matrix over the channels of `source` and is given nothing but rows of it."""
    weight, call = getattr(module, "weight", None), recording.calls.get(path)
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2 or call is None:
        return False
    return weight.shape[1] == source.shape[-1] and has_rows_of(call.input, source)


@torch.no_grad()
def norm_offset(module: nn.Module, call: Callable[[], torch.Tensor]) -> float | None:
    """For a norm: what it adds to its weight, which is how far below zero the weight is when only the bias is left.

    None for a module whose output a weight of its own does not silence. `call` gives the module's output.
    """
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, torch.Tensor) or weight.ndim != 1:
        return None
    kept = weight.data
    try:
        for offset in _OFFSETS:
            weight.data = torch.full_like(kept, -offset)
            silent = call()
            if torch.equal(silent, (torch.zeros_like(silent) if bias is None else bias.expand_as(silent))):
                return offset
    finally:
        weight.data = kept
    return None


def _linear_folds(recording: Recording, group: tuple[str, ...], heads: tuple[int, int]) -> Iterator[Fold]:
    """Linears called before the group, the latest first, whose channels reach it one by one.

    Whole outputs are tried before parts of one (v in a fused qkv, up in gate_up, values in MLA's kv_b).
    """
    near = list(_near_producers(recording, group))
    for whole in (True, False):
        for path in near:
            for selected_N in _selections(recording, path, group, heads, whole):
                rows_K = _rows(recording, path, group, selected_N)
                if rows_K is not None:
                    own = recording.layer.get_submodule(path).named_parameters(recurse=False)
                    names = tuple(f"{path}.{key}" for key, _ in own)
                    yield Fold("linear", path, (group,), (), rows_K, parameters=names)


def _near_producers(recording: Recording, group: tuple[str, ...]) -> Iterator[str]:
    """Linears called before the group, in the smallest module that holds it and any of them."""
    calls = recording.calls
    before = [path for path in linears(recording.layer) if path in calls and calls[path].order < calls[group[0]].order]
    depth = {path: common_ancestor(path, group[0]) for path in before}
    deepest = max((len(ancestor) for ancestor in depth.values()), default=0)
    near = [path for path in before if len(depth[path]) == deepest]
    yield from sorted(near, key=lambda path: -calls[path].order)


def _selections(
    recording: Recording, producer: str, group: tuple[str, ...], heads: tuple[int, int], whole: bool
) -> Iterator[torch.Tensor]:
    """Masks over the producer's outputs: all of them, or the last ones of it or of each of its heads."""
    outputs = recording.layer.get_submodule(producer).out_features
    inputs = recording.layer.get_submodule(group[0]).in_features
    place = torch.arange(outputs)
    if whole:
        if inputs % outputs == 0:
            yield torch.ones(outputs, dtype=torch.bool)
        return
    query_heads, repeats = heads
    for parts in sorted({1, query_heads}):
        for repeat in sorted({1, repeats}):
            tail, rest = divmod(inputs, repeat * parts)
            if outputs % parts == 0 and not rest and tail < outputs // parts:
                yield place % (outputs // parts) >= outputs // parts - tail


def _rows(recording: Recording, producer: str, group: tuple[str, ...], selected_N: torch.Tensor) -> torch.Tensor | None:
    """The producer's row behind each of the group's inputs, or None where they do not follow it one by one."""
    ancestor, chosen = recording.around(producer, group[0]), selected_N.nonzero().squeeze(1)
    given = recording.calls[group[0]].input
    assert given is not None
    factors = _LARGE * _random_scales(len(chosen))
    factor_N = torch.ones(len(selected_N)).index_copy(0, chosen, factors)
    moved = recording.replayed_input(group[0], ancestor, {producer: factor_N.to(given.device)})
    if moved is None or moved.shape != given.shape:  # an expert that is given other tokens now
        return None
    before, after = (x.reshape(-1, x.shape[-1]).double().cpu() for x in (given, moved))
    if not (before.isfinite().all() and after.isfinite().all()):
        return None
    energy_K = before.square().sum(0)
    ratio_K = (before * after).sum(0) / energy_K
    if not torch.allclose(after, before * ratio_K.nan_to_num(), rtol=_LEFT, atol=_LEFT * float(after.std())):
        return None
    rows_K = chosen[_nearest(factors, ratio_K.float().nan_to_num())]
    if len(chosen) == len(energy_K):  # a channel that no token moved (ReLU) has its own row like all others
        rows_K = torch.where(energy_K == 0, chosen, rows_K)
    return rows_K


def _nearest(values: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Index of the value next to each wanted one."""
    ordered, order = values.sort()
    upper = torch.searchsorted(ordered, wanted).clamp(1, max(1, len(values) - 1)).clamp(max=len(values) - 1)
    lower = (upper - 1).clamp(min=0)
    return order[torch.where((wanted - ordered[lower]).abs() < (wanted - ordered[upper]).abs(), lower, upper)]


def _holds(recording: Recording, fold: Fold) -> bool:
    """Whether random scales leave the output alone, against how far the producer alone would move it.

    Channels are multiplied between the modules, which equals changed weights and needs no second copy of them.
    """
    ancestor, readers = fold.producer, (*fold.consumers, *fold.routers)
    for path in readers:
        ancestor = recording.around(ancestor, path)
    device = recording.probe.hidden_BTH.device
    s_K = fold.tie(_random_scales(len(fold.rows_K), seed=1)).to(device)
    outputs = {fold.producer: 1 / fold.per_row(s_K, recording.calls[fold.producer].output.shape[-1])}
    plain = recording.replay(ancestor)
    apart = recording.replay(ancestor, outputs) - plain
    rest = recording.replay(ancestor, outputs, dict.fromkeys(readers, s_K)) - plain
    moved, left, whole = torch.stack([apart.norm(), rest.norm(), plain.norm()]).tolist()
    return left <= min(_LEFT * moved + _NOISE * whole, 0.1 * moved) and moved > 0


def _heads(decoder: Decoder) -> tuple[int, int]:
    """Query heads, and how many of them share a key: hints for where to look, never taken on trust."""
    config = decoder.model.config.get_text_config()
    query = int(getattr(config, "num_attention_heads", None) or 1)
    return query, query // int(getattr(config, "num_key_value_heads", None) or query)


def _random_scales(size: int, seed: int = 0) -> torch.Tensor:
    """Distinct factors between a half and two, in random order."""
    return torch.logspace(-1, 1, size, base=2)[torch.randperm(size, generator=torch.Generator().manual_seed(seed))]
