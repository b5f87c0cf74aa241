"""Weights that are products of two factors, trained as these: W = U V, and the gradient goes to U and V.

So the rank stays what it is, whatever a step does. What is written is the product of the factors as they are stored,
and these beside it.

Shapes: N outputs, K inputs of a linear layer, R the rank.
"""

from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import nn
from torch.nn.functional import linear

from optcore.factored import FACTORS, load_factored
from optcore.streaming.simulate import module_paths
from optcore.streaming.tensor_file import TensorFile
from optcore.streaming.writer import name_weights
from optcore.training.ranks import Ranks, full
from optcore.training.student import Student

if TYPE_CHECKING:
    from optcore.run import Run


class FactoredLinear(nn.Linear):
    """Takes the place of a linear layer, its weight in two factors."""

    def __init__(self, plain: nn.Linear, left_NR: torch.Tensor, right_RK: torch.Tensor) -> None:
        nn.Module.__init__(self)  # the weight of `nn.Linear` would hide our own
        self.in_features, self.out_features, self.bias = plain.in_features, plain.out_features, plain.bias
        device, self._stored = plain.weight.device, left_NR.dtype
        self.left = nn.Parameter(left_NR.to(device, torch.float32), requires_grad=False)
        self.right = nn.Parameter(right_RK.to(device, torch.float32), requires_grad=False)

    @property
    def weight(self) -> torch.Tensor:
        """The product, float32 [N, K]."""
        return self.left @ self.right

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The input through one factor after the other."""
        return linear(linear(x, self.right), self.left, self.bias)

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Left [N, R] and right [R, K] in the type that they are stored in. Every process must ask."""
        return full(self.left).to(self._stored), full(self.right).to(self._stored)

    def stored_weight(self) -> torch.Tensor:
        """The product of the factors as they are stored, float64 [N, K]. Every process must ask."""
        left_NR, right_RK = self.factors()
        return left_NR.double() @ right_RK.double()


def train_factors(run: "Run", student: Student) -> None:
    """Let the factors of `run.checkpoint`, where it has any, stand for the student's weights."""
    found = load_factored(run.checkpoint)
    if found is None or not found.tensors:
        return
    with safe_open(run.checkpoint / FACTORS, framework="pt") as file:
        for index, layer in enumerate(student.layers):
            for path, name in module_paths(student.decoder, index, layer).items():
                if f"{name}.weight" in found.tensors:
                    parent, _, leaf = path.rpartition(".")
                    factors = (file.get_tensor(f"{name}.{side}") for side in ("left", "right"))
                    module = FactoredLinear(layer.get_submodule(path), *factors)
                    setattr(layer.get_submodule(parent), leaf, module)


@torch.no_grad()
def write_factors(run: "Run", student: Student, ranks: Ranks) -> None:
    """Write the student's factors, where it has any, behind its weights. Every process must call it."""
    found = load_factored(run.checkpoint)
    names, modules = student.decoder.names, student.model.named_modules()
    factored = {names.stored_module(path): one for path, one in modules if isinstance(one, FactoredLinear)}
    if found is None or not factored:
        return
    with TensorFile(run.out / FACTORS, run.scratch) as file:
        for name, module in factored.items():
            for side, factor in zip(("left", "right"), module.factors(), strict=True):
                file.add(f"{name}.{side}", factor)
        if ranks.is_first:
            file.close()
            name_weights(run.out)
            found.save(run.out)
    ranks.wait()
