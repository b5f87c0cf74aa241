"""How large channels and heads are on calibration text: one pass over the model, sums in float64.

The score of a part with activation x[s, t] in window s at token t is sqrt(sum_s (mean_t |x[s, t]|)^2), Minitron's
(arXiv:2407.14679): the mean over a sequence, then the L2 norm over sequences. |x| of a head is its L2 norm.

Legend: N rows (tokens that reach a module), K channels, P parts, H hidden size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from optcore.calibration.propagate import calibration_windows
from optcore.errors import UnknownArchitecture
from optcore.restructure.norms import gain_offset
from optcore.streaming.experts import Expert
from optcore.streaming.hidden import HiddenStates

if TYPE_CHECKING:
    from optcore.restructure.width_plan import Plan
    from optcore.run import Run
    from optcore.streaming.decoder import Decoder


class Activity:
    """Sums over the rows that one module was given, or gave; `block` channels are a part."""

    def __init__(self, block: int = 1) -> None:
        self._block = block
        self._rows = 0
        self._squares_P: torch.Tensor | float = 0.0
        self._sum_K: torch.Tensor | float = 0.0

    def add(self, x_NK: torch.Tensor, window_N: torch.Tensor, length: int) -> None:
        """Rows of whole windows of `length` tokens; tokens that did not come by count as zeros."""
        x_NK = x_NK.float()
        size_NP = x_NK.abs() if self._block == 1 else x_NK.unflatten(-1, (-1, self._block)).norm(dim=-1)
        for rows_N in (window_N == window for window in window_N.unique()):
            mean_P = size_NP[rows_N].sum(0, dtype=torch.float64) / length
            self._squares_P = self._squares_P + mean_P.square().cpu()
        self._sum_K = self._sum_K + x_NK.sum(0, dtype=torch.float64).cpu()
        self._rows += len(x_NK)

    def score_P(self, parts: int) -> torch.Tensor:
        """Score of each part; zeros where nothing came by."""
        return torch.as_tensor(self._squares_P, dtype=torch.float64).sqrt().expand(parts)

    def mean_K(self, channels: int) -> torch.Tensor:
        """Mean of each channel over the rows."""
        return torch.as_tensor(self._sum_K, dtype=torch.float64).expand(channels) / max(1, self._rows)


class Energy:
    """Sums of the squares that one norm is given; its gain's offset beside them."""

    def __init__(self, offset: float) -> None:
        self.offset = offset
        self._squares_H: torch.Tensor | float = 0.0

    def add(self, x_NH: torch.Tensor) -> None:
        """Any rows."""
        self._squares_H = self._squares_H + x_NH.float().square().sum(0, dtype=torch.float64).cpu()

    def narrower(self, kept: torch.Tensor) -> float:
        """sqrt(mean square of the kept channels / mean square of all): what gains must be multiplied by."""
        squares_H = torch.as_tensor(self._squares_H)
        return float((squares_H[kept].mean() / squares_H.mean()).sqrt())


@dataclass
class Measured:
    """What one pass shows, by path of a module."""

    inputs: dict[str, Activity] = field(default_factory=dict)
    """Of readers: down_proj, o_proj."""
    outputs: dict[str, Activity] = field(default_factory=dict)
    """Of norms over the hidden state."""
    energies: dict[str, Energy] = field(default_factory=dict)
    """Of the same norms' inputs."""


class _Reached(Exception):
    """The last norm was called: what the head would make of it, nobody looks at."""


@torch.no_grad()
def measure(run: "Run", decoder: "Decoder", plan: "Plan") -> Measured:
    """Run calibration text through the model, layer by layer. How windows are batched does not matter."""
    states = HiddenStates(decoder, calibration_windows(run, decoder), run.scratch)
    watch = _Watch(decoder, plan, states.hidden_STH.shape[1])
    for index in range(len(decoder)):
        with decoder.layer(index) as layer, watch.watching(watch.inside(decoder.layer_name(index))):
            states.advance(index, layer)
        run.progress("calibrating", index + 1, len(decoder))
    outside = watch.outside()
    for path in outside:
        for _, state in states.states():
            with watch.watching([path], ends=True):
                _reach(decoder, state, path)
    return watch.found


def _reach(decoder: "Decoder", state: Any, path: str) -> None:
    try:
        decoder.logits(state)
    except _Reached:
        return
    raise UnknownArchitecture(
        f"{type(decoder.model).__name__} does not call {path} after its layers",
        remedy="leave `hidden` out (`width` has it in it)",
        field="/chain",
    )


class _Watch:
    """Hooks on the modules of a plan."""

    def __init__(self, decoder: "Decoder", plan: "Plan", length: int) -> None:
        self._decoder, self._length, self._norms = decoder, length, frozenset(plan.norms)
        self._units = {unit.reader: unit for unit in plan.units if unit.reader}
        self._layers = decoder.layer_name(0).removesuffix("0")
        self.found = Measured()

    def inside(self, layer: str) -> list[str]:
        """Paths to watch in a layer."""
        return [path for path in (*self._units, *self._norms) if path.startswith(f"{layer}.")]

    def outside(self) -> list[str]:
        """Paths to watch after all layers."""
        return [path for path in self._norms if not path.startswith(self._layers)]

    @contextmanager
    def watching(self, paths: list[str], *, ends: bool = False) -> Iterator[None]:
        """Look at what these modules are given and give; with `ends`, a call of one is the last."""
        find = self._decoder.model.get_submodule
        hooks = {path: self._norm_hook(path, ends) if path in self._norms else self._input_hook(path) for path in paths}
        handles = [find(path).register_forward_hook(hook) for path, hook in hooks.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _input_hook(self, path: str) -> Callable[..., None]:
        linear = self._decoder.model.get_submodule(path)
        parent = self._decoder.model.get_submodule(path.rpartition(".")[0])
        seen = self.found.inputs.setdefault(path, Activity(linear.in_features // self._units[path].parts))

        def hook(_: nn.Module, given: tuple[Any, ...], __: object) -> None:
            x_NK = given[0].reshape(-1, given[0].shape[-1])
            token_N = parent.tokens_T if isinstance(parent, Expert) else torch.arange(len(x_NK), device=x_NK.device)
            seen.add(x_NK, token_N // self._length, self._length)

        return hook

    def _norm_hook(self, path: str, ends: bool) -> Callable[..., None]:
        norm = self._decoder.model.get_submodule(path)
        if path not in self.found.energies:
            self.found.energies[path] = Energy(gain_offset(path, norm, self._decoder.device))
        energy, seen = self.found.energies[path], self.found.outputs.setdefault(path, Activity())

        def hook(_: nn.Module, given: tuple[Any, ...], out_BTH: torch.Tensor) -> None:
            energy.add(given[0].flatten(0, -2))
            window_N = torch.arange(out_BTH.flatten(0, -2).shape[0], device=out_BTH.device) // self._length
            seen.add(out_BTH.flatten(0, -2), window_N, self._length)
            if ends:
                raise _Reached

        return hook
