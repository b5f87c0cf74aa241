"""Positions of text, a few at a time: logits over a large vocabulary outweigh a layer."""

from collections.abc import Iterator

import torch

from optcore.streaming.decoder import State

LOGITS_tokens = 512


def predicted_parts(tokens_BT: torch.Tensor, shift: int) -> Iterator[slice]:
    """Positions whose predicted token, `shift` places on, is known."""
    windows, length = tokens_BT.shape
    size = max(1, LOGITS_tokens // windows)
    for start in range(0, length - shift, size):
        yield slice(start, min(start + size, length - shift))


def only(state: State, part: slice) -> State:
    """The state at these positions."""
    return state._replace(hidden_BTH=state.hidden_BTH[:, part])
