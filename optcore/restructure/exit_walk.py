"""Text through a model whose tokens leave early, and what each exit would have said.

Legend: S windows, T tokens.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from optcore.streaming.decoder import Decoder
from optcore.streaming.exits import leaving, predicted
from optcore.streaming.hidden import HiddenStates

if TYPE_CHECKING:
    from optcore.run import Run


class Walk(NamedTuple):
    """What a model said of every token."""

    likeliest_ST: torch.Tensor
    computed_ST: torch.Tensor
    """Layers that each token was in."""


@torch.no_grad()
def walk(run: "Run", decoder: Decoder, tokens_ST: torch.Tensor, exits: Sequence[int], threshold: float) -> Walk:
    """Every token leaves at the first of `exits` (layers computed) where it is ahead by `threshold`."""
    decoder.freezing = leaving(decoder.logits, exits, threshold)
    states, computed_ST = HiddenStates(decoder, tokens_ST, run.scratch), torch.zeros_like(tokens_ST)
    for index in range(len(decoder)):
        computed_ST += 1 if states.frozen_ST is None else (~states.frozen_ST).long()
        with decoder.layer(index) as layer:
            states.advance(index, layer)
        run.progress("calibrating", index + 1, len(decoder))
    return Walk(_likeliest(decoder, states), computed_ST)


@torch.no_grad()
def said_at(run: "Run", decoder: Decoder, tokens_ST: torch.Tensor) -> list[torch.Tensor]:
    """The likeliest token [S, T] after each layer, all tokens going on: the last ones are the model's own."""
    decoder.freezing = None
    states, found = HiddenStates(decoder, tokens_ST, run.scratch), []
    for index in range(len(decoder)):
        with decoder.layer(index) as layer:
            states.advance(index, layer)
        found.append(_likeliest(decoder, states))
        run.progress("calibrating", index + 1, len(decoder))
    return found


def _likeliest(decoder: Decoder, states: HiddenStates) -> torch.Tensor:
    hidden = (state.hidden_BTH for _, state in states.states())
    batches = (torch.cat([said for said, _ in predicted(decoder.logits, each)], 1) for each in hidden)
    return torch.cat([batch_BT.cpu() for batch_BT in batches])
