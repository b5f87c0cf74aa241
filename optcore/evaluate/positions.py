"""Positions of text, a few at a time: logits over a large vocabulary outweigh a layer."""

from collections.abc import Iterator

from optcore.streaming.decoder import State

LOGITS_tokens = 512


def parts(windows: int, positions: range) -> Iterator[slice]:
    """Slices of `positions`, no larger than what so many windows allow."""
    size = max(1, LOGITS_tokens // windows)
    for start in range(positions.start, positions.stop, size):
        yield slice(start, min(start + size, positions.stop))


def only(state: State, part: slice) -> State:
    """The state at these positions."""
    return state._replace(hidden_BTH=state.hidden_BTH[:, part])
