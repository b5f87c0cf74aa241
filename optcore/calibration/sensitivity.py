"""What one linear layer's rounding will cost the model, in nats a token, without running the model.

The KL divergence from the original model is, to second order, half the Fisher quadratic form of the change of the
layer's outputs (see `gradients.py`). With changes taken as uncorrelated between output channels, that is a sum over
channels n of g_n^2 * E[dy_n^2]; and for a rounded weight W + dW the mean square of the change is E[dy_n^2] =
(dW H dW^T)_nn, with H = X^T X / tokens. So a score is a pure function of (W, H) and g_n^2, and scores of layers add up.
(The layer-wise model of HAWQ-V2, arXiv:1911.03852, with the trace of the Hessian refined by channel.)

Rounded inputs err independently from token to token: their g_n^2 is the plain mean square. Rounded weights err alike on
alike inputs: theirs is the coherent one. They differ most in the first layer, where equal tokens have equal inputs.

Legend: W [N, K], H [K, K], g [N] those squares; `share` is the share of all tokens that reach the layer: 1, or less for
an expert, whose H and g are those of its own tokens.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from optcore.calibration.statistics import InputStatistics
from optcore.kernels.gram import accumulate, symmetric

Group = tuple[str, ...]
_SAMPLE_tokens = 256
# One token in so many is kept from a rounding that fits itself to the tokens.
_HELD_OUT = 4


def weight_score(gradient_N: torch.Tensor, share: float, change_NK: torch.Tensor, gram_KK: torch.Tensor) -> float:
    """Nats a token for storing W + `change_NK` in place of W."""
    moved_N = ((change_NK @ gram_KK) * change_NK).sum(1)
    return 0.5 * share * float(gradient_N @ moved_N)


def input_score(gradient_N: torch.Tensor, share: float, change_TN: torch.Tensor) -> float:
    """Nats a token for rounded inputs, from the change of the outputs that they make on a sample of tokens."""
    return 0.5 * share * float(gradient_N @ change_TN.square().mean(0))


class InputSample:
    """A few tokens of the input of each group, evenly spread: what activation formats are tried on."""

    def __init__(self, layer: nn.Module, groups: Iterable[Sequence[str]], tokens: int) -> None:
        # An odd stride meets every position of windows whose length is a power of two.
        self._stride = max(1, tokens // _SAMPLE_tokens) | 1
        self._found: dict[Group, list[torch.Tensor]] = {tuple(group): [] for group in groups}
        self._seen = dict.fromkeys(self._found, 0)
        self._handles = _watch(layer, self._found, self._take)

    def finished(self) -> dict[Group, torch.Tensor | None]:
        """Tokens [T, K] by group; None where there was none. The layer is left as it was."""
        _release(self._handles)
        return {group: torch.cat(found) if found else None for group, found in self._found.items()}

    def _take(self, group: Group, x_TK: torch.Tensor) -> None:
        self._found[group].append(x_TK[-self._seen[group] % self._stride :: self._stride].float())
        self._seen[group] += len(x_TK)


class HeldOut:
    """A quarter of the tokens, from the end of each batch, on which a rounding that was fitted to the rest is judged.

    GPTQ fits weights to the very H that would score it: on few tokens that flatters layers with many inputs most.
    """

    def __init__(self, layer: nn.Module, groups: Iterable[Sequence[str]]) -> None:
        self._found: dict[Group, InputStatistics] = {tuple(group): InputStatistics() for group in groups}
        self._handles = _watch(layer, self._found, self._take)

    def parted(
        self, whole: Mapping[Group, InputStatistics]
    ) -> dict[Group, tuple[InputStatistics, torch.Tensor | None]]:
        """By group: the statistics without what was held out, and H of that. The layer is left as it was."""
        _release(self._handles)
        return {group: _without(found, self._found[group]) for group, found in whole.items()}

    def _take(self, group: Group, x_TK: torch.Tensor) -> None:
        found, count = self._found[group], len(x_TK) // _HELD_OUT
        if found.gram_KK is None:
            found.gram_KK = torch.zeros(x_TK.shape[1], x_TK.shape[1], device=x_TK.device)
        accumulate(found.gram_KK, x_TK[len(x_TK) - count :])
        found.tokens += count


def _without(whole: InputStatistics, held: InputStatistics) -> tuple[InputStatistics, torch.Tensor | None]:
    if whole.gram_KK is None or held.gram_KK is None or not held.tokens:
        return whole, whole.gram_KK
    sum_KK = symmetric(held.gram_KK)
    tokens = whole.tokens - held.tokens
    rest_KK = (whole.gram_KK * whole.tokens - sum_KK) / tokens
    return replace(whole, tokens=tokens, gram_KK=rest_KK), sum_KK / held.tokens


def _watch(layer: nn.Module, groups: Iterable[Group], see: Callable[[Group, torch.Tensor], None]) -> list[Any]:
    """Show the input [T, K] of each group's first linear layer whenever it runs."""
    return [
        layer.get_submodule(group[0]).register_forward_pre_hook(
            lambda _, given, group=group: see(group, given[0].detach().reshape(-1, given[0].shape[-1]))
        )
        for group in groups
    ]


def _release(handles: list[Any]) -> None:
    while handles:
        handles.pop().remove()
