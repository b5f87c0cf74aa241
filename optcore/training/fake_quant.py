"""A linear layer that trains in high precision and computes what its quantized form will.

The weight that is rounded is a *master*: float32, moved by the optimizer. What scales do meanwhile is a policy:
`freeze` keeps those that a search found (searching again at every step would cost more than the step), `recompute`
takes the maximum anew, as plain maximum scales are defined, and `learn` moves them by gradient (LSQ, arXiv:1902.08153).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn
from torch.nn.functional import linear

from optcore.algorithms.activations import outlier_columns
from optcore.algorithms.blocks import spread
from optcore.algorithms.lattice import Lattice, lattice
from optcore.algorithms.scales import Scales, find_scales, storage_of
from optcore.schemes import QuantArgs, Scheme
from optcore.training.straight_through import learned_weight, round_activation, round_weight

ScalePolicy = Literal["freeze", "recompute", "learn"]


class FakeQuantLinear(nn.Linear):
    """Takes the place of a linear layer, with its very parameters.

    `scales` are those of the checkpoint; `siblings` are the layers that an engine fuses with this one, itself included.
    """

    def __init__(
        self,
        plain: nn.Linear,
        scheme: Scheme,
        scales: Scales,
        *,
        input_scale: torch.Tensor | None = None,
        search_activations: bool = False,
        policy: ScalePolicy = "freeze",
    ) -> None:
        super().__init__(plain.in_features, plain.out_features, plain.bias is not None, device="meta")
        self.weight, self.bias = plain.weight, plain.bias
        self.scheme = scheme
        self.policy = policy
        self.siblings: Callable[[], Sequence[nn.Linear]] = lambda: [self]
        self.merged: Callable[[], torch.Tensor] = lambda: self.weight
        """The weight that is rounded: where an adapter is trained, with its part."""
        self._search = search_activations
        self._dense_NK = plain.weight.detach().clone() if _keeps_outliers(scheme) else None
        self._levels = [name for name, tensor in zip(Scales._fields, scales, strict=True) if tensor is not None]
        for name in self._levels:
            self.register_buffer(f"scales_{name}", getattr(scales, name).to(plain.weight.device), persistent=False)
        self.register_buffer("input_scale", input_scale, persistent=False)
        if policy == "learn":
            self.log_gain = nn.Parameter(torch.zeros(scales.step().shape, device=plain.weight.device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The rounded input times the rounded weight."""
        weight_NK = self.rounded(x.dtype)
        args = self.scheme.activations
        if args is None:
            return linear(x, weight_NK, self.bias)
        if args.outliers is not None:
            return self._with_outliers(x, weight_NK, args)
        return linear(round_activation(x, args, self.input_scale, search=self._search), weight_NK, self.bias)

    def rounded(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight as it will be decoded, [N, K], with a gradient to what is trained."""
        if self.policy == "learn":
            return learned_weight(self.merged().float(), self._learned_lattice()).to(dtype)
        return round_weight(self.merged(), self.scales(), self.scheme.weights, dtype)

    def scales(self) -> Scales:
        """The scales that the weight is rounded with now, as they are stored."""
        if self.policy == "recompute":
            siblings = self.siblings()
            place = next(i for i, one in enumerate(siblings) if one is self)
            weights = [one.merged().detach().float() for one in siblings if isinstance(one, FakeQuantLinear)]
            return find_scales(weights, self.scheme.weights, "max", self._kept().scale.dtype)[place]
        kept = self._kept()
        return kept._replace(scale=self._stored(self._learned().detach())) if self.policy == "learn" else kept

    def _learned_lattice(self) -> Lattice:
        args, shape = self.scheme.weights, (self.out_features, self.in_features)
        learned, kept = self._learned(), self._kept()
        stored = kept._replace(scale=self._stored(learned.detach())).step()
        step = learned + (stored - learned).detach()  # what is stored is a rounded number too
        return lattice(kept, args, shape)._replace(step_NK=spread(step, args, shape))

    def _learned(self) -> torch.Tensor:
        """Steps as trained. Their logarithm moves, so that one learning rate suits scales of every size."""
        return self._kept().step() * self.log_gain.exp()

    def _stored(self, step: torch.Tensor) -> torch.Tensor:
        """The nearest stored scales of steps."""
        kept = self._kept()
        return storage_of(kept, self.scheme.weights).store(step).view(kept.scale.dtype)

    def _kept(self) -> Scales:
        return Scales(**{name: getattr(self, f"scales_{name}") for name in self._levels})

    def _with_outliers(self, x: torch.Tensor, weight_NK: torch.Tensor, args: QuantArgs) -> torch.Tensor:
        """LLM.int8: columns with outliers meet the dense weight, which does not train."""
        assert self._dense_NK is not None
        outliers_K = outlier_columns(x.detach(), args)
        regular = round_activation(x * ~outliers_K, args, None)
        exact = linear(x * outliers_K, self._dense_NK.to(x.dtype))
        return linear(regular, weight_NK * ~outliers_K, self.bias) + exact


@contextmanager
def as_stored(modules: Iterable[FakeQuantLinear]) -> Iterator[None]:
    """Inside, the checkpoint's own scales hold, whatever the policy: an untrained model is exactly what was read."""
    policies = [(module, module.policy) for module in modules]
    for module, _ in policies:
        module.policy = "freeze"
    try:
        yield
    finally:
        for module, policy in policies:
            module.policy = policy


def _keeps_outliers(scheme: Scheme) -> bool:
    return scheme.activations is not None and scheme.activations.outliers is not None
