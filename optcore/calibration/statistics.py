"""What is measured of a linear layer's input while calibration text runs through: all that the algorithms ever see.

Legend: T tokens, K input channels. A fused group (q/k/v, gate/up) has one input, so it is measured once.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import torch
from torch import nn

from optcore.kernels.gram import accumulate, accumulate_cross, symmetric
from optcore.streaming.experts import Expert

Group = tuple[str, ...]
"""Paths of fused siblings."""


@dataclass
class InputStatistics:
    """Moments of one input over the calibration set."""

    tokens: int = 0
    channel_amax_K: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """Largest magnitude of each channel."""
    gram_KK: torch.Tensor | None = None
    """X^T X / tokens, float32; None where no algorithm wants it."""
    cross_KK: torch.Tensor | None = None
    """X^T Z / tokens, where Z is the same input in the original model."""

    squares_K: torch.Tensor | None = None
    """Mean square of each channel, float32, where it was measured without the Gram matrix."""

    @property
    def importance_K(self) -> torch.Tensor | None:
        """Mean square of each channel, the diagonal of the Gram matrix."""
        return self.squares_K if self.gram_KK is None else self.gram_KK.diagonal()

    def to(self, device: torch.device) -> "InputStatistics":
        """The statistics on another device."""
        matrices = (self.gram_KK, self.cross_KK, self.squares_K)
        moved = (None if matrix is None else matrix.to(device) for matrix in matrices)
        return InputStatistics(self.tokens, self.channel_amax_K.to(device), *moved)

    def scaled(self, divisor_K: torch.Tensor) -> "InputStatistics":
        """The statistics of x / divisor."""
        pairs = divisor_K[:, None] * divisor_K[None, :]
        return InputStatistics(
            self.tokens,
            self.channel_amax_K / divisor_K if self.tokens else self.channel_amax_K,
            None if self.gram_KK is None else self.gram_KK / pairs,
            None if self.cross_KK is None else self.cross_KK / pairs,
            None if self.squares_K is None else self.squares_K / divisor_K.square(),
        )


def largest_magnitudes(statistics: Iterable[InputStatistics]) -> list[float]:
    """Of each input, 0 where no token came by; a GPU is waited for once, for all of them."""
    found = list(statistics)
    seen = [one.channel_amax_K.amax() for one in found if one.tokens]
    values = iter(torch.stack(seen).tolist() if seen else ())
    return [next(values) if one.tokens else 0.0 for one in found]


class _AllSeen(Exception):
    """The inputs of every group have come by: what the layer would still compute, nobody looks at."""


class Observer:
    """Measures the input of each group's first linear layer while its layer runs; those of `cross` in two models."""

    def __init__(
        self,
        layer: nn.Module,
        groups: Iterable[Sequence[str]],
        *,
        gram: bool,
        squares: bool = False,
        cross: Iterable[Sequence[str]] = (),
    ) -> None:
        self._modules = {tuple(group): layer.get_submodule(group[0]) for group in groups}
        parents = {group: layer.get_submodule(group[0].rpartition(".")[0]) for group in self._modules}
        self._experts = {group: parent for group, parent in parents.items() if isinstance(parent, Expert)}
        self._gram, self._squares = gram, squares
        self._cross = {tuple(group) for group in cross}
        self._found = {group: InputStatistics() for group in self._modules}
        self._original: dict[Group, tuple[torch.Tensor, torch.Tensor | None]] = {}

    def finished(self) -> dict[Group, InputStatistics]:
        """Means over all tokens seen, by group."""
        for found in self._found.values():
            if found.gram_KK is not None:
                found.gram_KK = symmetric(found.gram_KK).div_(found.tokens)
            if found.squares_K is not None:
                found.squares_K = found.squares_K / found.tokens
            if found.cross_KK is not None:
                found.cross_KK = found.cross_KK.div_(found.tokens)
        return self._found

    @contextmanager
    def measuring(self, *, to_the_end: bool = True) -> Iterator[None]:
        """Add every input to the statistics; one forward of the layer, which need not come `to_the_end`."""
        with self._hooked(self._measure, () if to_the_end else self._modules):
            yield

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Keep the inputs of the original model, to be set against those measured next; the forward ends with them."""
        self._original = {}
        with self._hooked(self._remember, self._cross):
            yield

    @contextmanager
    def _hooked(self, see: Callable[[Group, torch.Tensor], None], last: Iterable[Group]) -> Iterator[None]:
        """`see` every input; the forward ends when those of `last` have been seen, unless there are none."""
        waiting = set(last)

        def hook(group: Group, x: torch.Tensor) -> None:
            see(group, x)
            if group in waiting:
                waiting.remove(group)
                if not waiting:
                    raise _AllSeen

        handles = [
            module.register_forward_pre_hook(lambda _, given, group=group: hook(group, given[0]))
            for group, module in self._modules.items()
        ]
        try:
            with suppress(_AllSeen):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _remember(self, group: Group, x: torch.Tensor) -> None:
        if group in self._cross:
            self._original.setdefault(group, (x.reshape(-1, x.shape[-1]), self._tokens(group)))

    def _tokens(self, group: Group) -> torch.Tensor | None:
        """Which tokens an expert's rows are; None for a linear that is given all of them."""
        return self._experts[group].tokens_T if group in self._experts else None

    @torch.no_grad()
    def _measure(self, group: Group, x: torch.Tensor) -> None:
        x_TK = x.reshape(-1, x.shape[-1])
        if not len(x_TK):
            return
        found = self._found[group]
        amax_K = x_TK.abs().amax(0).float()
        found.channel_amax_K = torch.maximum(found.channel_amax_K, amax_K) if found.tokens else amax_K
        found.tokens += len(x_TK)
        if self._gram:
            found.gram_KK = _zeros_if_none(found.gram_KK, x_TK)
            accumulate(found.gram_KK, x_TK)
        if self._squares:
            squares_K = x_TK.float().square().sum(0)
            found.squares_K = squares_K if found.squares_K is None else found.squares_K + squares_K
        if group in self._cross:
            found.cross_KK = _zeros_if_none(found.cross_KK, x_TK)
            accumulate_cross(found.cross_KK, x_TK, self._counterpart(group, x_TK))

    def _counterpart(self, group: Group, x_TK: torch.Tensor) -> torch.Tensor:
        """The original model's inputs of the same tokens. A token that it sent to other experts has none, nor has
        another call with something else: there the input stands for itself, and asks for no correction."""
        if group not in self._original:
            return x_TK
        z_TK, theirs_T = self._original[group]
        own_T = self._tokens(group)
        if own_T is None or theirs_T is None:
            return z_TK if z_TK.shape == x_TK.shape else x_TK
        place_T = torch.searchsorted(theirs_T, own_T).clamp(max=len(theirs_T) - 1)
        is_common_T = theirs_T[place_T] == own_T
        return torch.where(is_common_T[:, None], z_TK[place_T], x_TK)


def _zeros_if_none(matrix_KK: torch.Tensor | None, x_TK: torch.Tensor) -> torch.Tensor:
    if matrix_KK is not None:
        return matrix_KK
    return torch.zeros(x_TK.shape[1], x_TK.shape[1], device=x_TK.device)
