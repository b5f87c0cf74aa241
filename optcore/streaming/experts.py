"""Mixture-of-experts layers with one linear per expert and projection, as engines store them.

transformers keeps the experts of a layer as 3-D parameters, and some checkpoints do too. Observers, scales and exports
need every expert's projections as modules of their own, so the skeleton is built with these classes in their place.
How a class lays its experts out (transposed, gate and up interleaved, with biases, without a gate) is what it says of
itself to transformers, and how gate and up are combined is its own function: no architecture is listed here.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn

GATE, UP, DOWN = "gate_proj", "up_proj", "down_proj"


class Layout(NamedTuple):
    """How a fused parameter holds its experts."""

    is_transposed: bool
    """Each expert's matrix is [inputs, outputs]."""
    is_interleaved: bool
    """Outputs alternate between gate and up instead of following each other."""


class Part(NamedTuple):
    """One expert's projection in a fused tensor whose first dimension counts experts."""

    expert: int
    projection: str
    layout: Layout

    def of(self, fused: torch.Tensor, is_halved: bool) -> torch.Tensor:
        """A view [outputs, inputs] (or [outputs] of a bias) of the fused tensor; `is_halved` when it is gate and up."""
        own = fused[self.expert]
        if own.ndim == 2 and self.layout.is_transposed:
            own = own.T
        if not is_halved:
            return own
        is_up = self.projection == UP
        if self.layout.is_interleaved:
            return own[int(is_up) :: 2]
        half = len(own) // 2
        return own[half:] if is_up else own[:half]


class Expert(nn.Module):
    """One feed-forward network, gated or not."""

    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        layout = layout_of(fused)
        hidden, inner = fused.down_proj.shape[-2:]
        if layout.is_transposed:
            hidden, inner = inner, hidden
        bias = bool(fused.has_bias)
        if fused.has_gate:
            self.gate_proj = nn.Linear(hidden, inner, bias)
        self.up_proj = nn.Linear(hidden, inner, bias)
        self.down_proj = nn.Linear(inner, hidden, bias)
        self._combine: Callable[[torch.Tensor], torch.Tensor] = fused._apply_gate if fused.has_gate else fused.act_fn
        self._is_gated = bool(fused.has_gate)
        self._is_interleaved = layout.is_interleaved
        self.tokens_T = torch.empty(0, dtype=torch.long)
        """Which of the layer's tokens its rows are, in rising order, while the layer runs."""

    def forward(self, x_TH: torch.Tensor) -> torch.Tensor:
        gate = self.gate_proj(x_TH) if self._is_gated else None
        up = self.up_proj(x_TH)
        if gate is not None:
            up = torch.stack((gate, up), -1).flatten(-2) if self._is_interleaved else torch.cat((gate, up), -1)
        return self.down_proj(self._combine(up))


class Experts(nn.ModuleList):
    """All experts of a layer, called as transformers calls its fused ones."""

    def __init__(self, fused: nn.Module) -> None:
        with torch.device(fused.down_proj.device):
            super().__init__(Expert(fused) for _ in range(len(fused.down_proj)))
        self.layout = layout_of(fused)

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """[T, H], [T, k] expert numbers and [T, k] weights to the weighted sum [T, H]."""
        total_TH = torch.zeros_like(hidden_states)
        for expert, (token, place) in zip(self, routed(top_k_index, len(self)), strict=True):
            if len(token):
                expert.tokens_T = token
                out = expert(hidden_states[token]) * top_k_weights[token, place, None]
                total_TH.index_add_(0, token, out.to(total_TH.dtype))
        return total_TH


def routed(chosen_Tk: torch.Tensor, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each of `count` experts, which tokens chose it, rising, and as which of their k.

    A GPU is waited for once, not once for each expert as by a search for its number.
    """
    numbers, order = chosen_Tk.flatten().sort(stable=True)
    bounds = torch.searchsorted(numbers, torch.arange(count + 1, device=numbers.device, dtype=numbers.dtype)).tolist()
    token, place = order // chosen_Tk.shape[1], order % chosen_Tk.shape[1]
    return [(token[start:end], place[start:end]) for start, end in pairwise(bounds)]


def unfuse(module: nn.Module) -> None:
    """Replace every fused-experts module below `module` (which may be on the meta device)."""
    for name, child in list(module.named_children()):
        if is_fused_experts(child):
            setattr(module, name, Experts(child))
        else:
            unfuse(child)


def is_fused_experts(module: nn.Module) -> bool:
    """Whether it is a class whose layout transformers knows, with its experts in 3-D parameters."""
    if not all(hasattr(module, name) for name in ("is_transposed", "is_concatenated", "has_bias", "has_gate")):
        return False
    names = ("gate_up_proj" if module.has_gate else UP, DOWN)
    return all(getattr(getattr(module, name, None), "ndim", 0) == 3 for name in names)


def layout_of(fused: nn.Module) -> Layout:
    """What the class says of its parameters."""
    return Layout(bool(fused.is_transposed), not fused.is_concatenated)


def decides(module: nn.Module, count: int) -> bool:
    """Whether something beside `count` experts is their router: each of its matrices has a row for each of them.

    A shared expert that is as wide as there are experts has one that has not.
    """
    parameters = [*module.parameters(), *module.buffers()]
    return not isinstance(module, Experts) and {len(each) for each in parameters if each.ndim == 2} == {count}
