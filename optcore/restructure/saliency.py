"""How much each expert adds to what its layer gives for calibration text.

Legend: T tokens, K experts chosen for a token, E experts, H hidden size.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from optcore.calibration.propagate import calibration_windows
from optcore.streaming.experts import Expert, Experts
from optcore.streaming.hidden import HiddenStates

if TYPE_CHECKING:
    from optcore.restructure.routing import Routed
    from optcore.run import Run
    from optcore.streaming.decoder import Decoder

_GIVEN = ("hidden_states", "top_k_index", "top_k_weights")


class Saliency(NamedTuple):
    """What the experts of one layer were measured by."""

    scores: list[float]
    """The mean over an expert's tokens of gate times norm of output; 0 for one that no token reached."""
    tokens: list[int]
    """How many reached it."""


@torch.no_grad()
def saliencies(run: "Run", decoder: "Decoder", blocks: Mapping[int, "Routed"]) -> dict[int, Saliency]:
    """Of the experts of each layer that has them, in one pass over the calibration set.

    S_j = mean over the tokens t routed to j of g_j(t) |f_j(t)|_2 (REAP, arXiv:2510.13999), the gates of a
    token's chosen experts scaled to sum to 1. Sums run in float64: how windows are batched does not matter.
    """
    states = HiddenStates(decoder, calibration_windows(run, decoder), run.scratch)
    found: dict[int, Saliency] = {}
    for index in range(len(decoder)):
        with decoder.layer(index) as layer:
            if index in blocks:
                watch = _Watch(len(blocks[index].experts), decoder.device)
                with watch.watching(blocks[index].experts):
                    states.advance(index, layer)
                found[index] = watch.saliency
            else:
                states.advance(index, layer)
        run.progress("calibrating", index + 1, len(decoder))
    return found


class _Watch:
    """Sums over all tokens that pass through a layer's experts."""

    def __init__(self, count: int, device: torch.device) -> None:
        self._sums_E = torch.zeros(count, dtype=torch.float64, device=device)
        self._tokens_E = torch.zeros(count, dtype=torch.long, device=device)
        self._index_TK = self._gates_TK = torch.empty(0)

    @property
    def saliency(self) -> Saliency:
        """The means so far."""
        return Saliency((self._sums_E / self._tokens_E.clamp_min(1)).tolist(), self._tokens_E.tolist())

    @contextmanager
    def watching(self, experts: Experts) -> Iterator[None]:
        """Whatever passes through the experts counts."""
        handles = [experts.register_forward_pre_hook(self._route, with_kwargs=True)]
        for number, expert in enumerate(experts):
            handles.append(expert.register_forward_hook(lambda own, _, out, number=number: self._add(number, own, out)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _route(self, _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = dict(zip(_GIVEN, args, strict=False)) | kwargs
        self._index_TK, weights_TK = given["top_k_index"], given["top_k_weights"].double()
        self._gates_TK = weights_TK / weights_TK.sum(-1, keepdim=True)

    def _add(self, number: int, expert: Expert, out_TH: torch.Tensor) -> None:
        is_own_TK = self._index_TK[expert.tokens_T] == number
        gate_T = (self._gates_TK[expert.tokens_T] * is_own_TK).sum(-1)
        self._sums_E[number] += (gate_T * out_TH.double().norm(dim=-1)).sum()
        self._tokens_E[number] += len(out_TH)
