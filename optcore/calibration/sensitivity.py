"""What one linear layer's rounding will cost the model, in nats a token, without running the model.

The KL divergence from the original model is, to second order, half the Fisher quadratic form of the change of the
layer's outputs (see `gradients.py`). With changes taken as uncorrelated between output channels and between tokens,
that is a sum over channels n of E[g_n^2] * E[dy_n^2]; and for a rounded weight W + dW the mean square of the change is
E[dy_n^2] = (dW H dW^T)_nn, with H = X^T X / tokens. So a score is a pure function of (W, H) and E[g_n^2], and scores
of layers add up. (The layer-wise model of HAWQ-V2, arXiv:1911.03852, with the trace of the Hessian refined by channel.)

Legend: W [N, K], H [K, K], g [N] = E[g_n^2]; `share` is the share of all tokens that reach the layer: 1, or less for
an expert, whose H and g are means over its own tokens.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

_SAMPLE_tokens = 256


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
        self._found: dict[tuple[str, ...], list[torch.Tensor]] = {tuple(group): [] for group in groups}
        self._seen = dict.fromkeys(self._found, 0)
        self._handles = [
            layer.get_submodule(group[0]).register_forward_pre_hook(
                lambda _, given, group=group: self._take(group, given[0])
            )
            for group in self._found
        ]

    def finished(self) -> dict[tuple[str, ...], torch.Tensor | None]:
        """Tokens [T, K] by group; None where there was none. The layer is left as it was."""
        while self._handles:
            self._handles.pop().remove()
        return {group: torch.cat(found) if found else None for group, found in self._found.items()}

    def _take(self, group: tuple[str, ...], x: torch.Tensor) -> None:
        x_TK = x.detach().reshape(-1, x.shape[-1])
        self._found[group].append(x_TK[-self._seen[group] % self._stride :: self._stride].float())
        self._seen[group] += len(x_TK)
