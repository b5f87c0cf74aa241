"""Which tokens leave a model early: those that it is sure of, by its own head, after a layer that they may leave after.

Tokens that have left keep their hidden state. Later layers make their keys and values of that, for other tokens to
attend to (state propagation, CALM, arXiv:2207.07061, 3.2), and norm and head give at the end what they left with.

Legend: B windows of a batch, T tokens, H hidden size.
"""

from collections.abc import Callable, Collection, Iterator

import torch

from optcore.streaming.stand_ins import State

LOGITS_tokens = 512
"""Logits over a large vocabulary outweigh a layer: of how many tokens they are in memory at once."""
NEVER = 2.0
"""A threshold that no token reaches: the lead of one probability over another is at most 1."""

Logits = Callable[[State], torch.Tensor]
"""Of a decoder: what the model would predict if these were its last layer's states, [B, T, V]."""


def leaving(logits: Logits, exits: Collection[int], threshold: float) -> Callable[[int, State], torch.Tensor]:
    """What tells which tokens, bool [B, T], leave after a layer counted from 0: at `exits` (layers computed), those
    whose likeliest token is ahead of the next one by at least `threshold` in probability."""

    @torch.no_grad()
    def sure(index: int, state: State) -> torch.Tensor:
        hidden_BTH = state.hidden_BTH
        if index + 1 not in exits or threshold > 1:
            return torch.zeros(hidden_BTH.shape[:2], dtype=torch.bool, device=hidden_BTH.device)
        return torch.cat([lead for _, lead in predicted(logits, hidden_BTH)], 1) >= threshold

    return sure


def predicted(logits: Logits, hidden_BTH: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Piece after piece of the positions: the likeliest tokens [B, t] if these were the last layer's states, and how
    far ahead of the next ones they are, in probability [B, t]."""
    for part_BtH in hidden_BTH.split(max(1, LOGITS_tokens // len(hidden_BTH)), 1):
        top = logits(State(part_BtH, ())).float().softmax(-1).topk(2)
        yield top.indices[..., 0], top.values[..., 0] - top.values[..., 1]
