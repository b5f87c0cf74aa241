"""Mixture-of-experts layers with one linear per expert and projection, as checkpoints and engines store them.

transformers keeps the experts of a layer as two 3-D parameters. Observers, scales and exports need every expert's
projections as modules of their own, so the skeleton is built with this class in their place; it computes the same sums.
"""

import torch
from torch import nn


class Expert(nn.Module):
    """One gated feed-forward network."""

    def __init__(self, hidden_size: int, intermediate_size: int, activation: nn.Module) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)
        self.activation = activation

    def forward(self, x_TH: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.activation(self.gate_proj(x_TH)) * self.up_proj(x_TH))


class Experts(nn.ModuleList):
    """All experts of a layer, called as transformers calls its fused ones."""

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """[T, H], [T, k] expert numbers and [T, k] weights to the weighted sum [T, H]."""
        total_TH = torch.zeros_like(hidden_states)
        for number, expert in enumerate(self):
            token, place = torch.where(top_k_index == number)
            if len(token):
                out = expert(hidden_states[token]) * top_k_weights[token, place, None]
                total_TH.index_add_(0, token, out.to(total_TH.dtype))
        return total_TH


def unfuse(module: nn.Module) -> None:
    """Replace every fused-experts module below `module` (which may be on the meta device)."""
    for name, child in list(module.named_children()):
        if _is_fused_experts(child):
            setattr(module, name, _unfused(child))
        else:
            unfuse(child)


def _is_fused_experts(module: nn.Module) -> bool:
    shapes = [getattr(getattr(module, name, None), "ndim", 0) for name in ("gate_up_proj", "down_proj")]
    return shapes == [3, 3] and hasattr(module, "act_fn")


def _unfused(fused: nn.Module) -> Experts:
    number, hidden_size, intermediate_size = fused.down_proj.shape
    with torch.device(fused.down_proj.device):
        return Experts(Expert(hidden_size, intermediate_size, fused.act_fn) for _ in range(number))
