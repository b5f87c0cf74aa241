"""What a restructuring made of weights, kept while they train.

A constraint is a linear subspace that parameters lie in. Before each step of the optimizer their gradients are brought
into it, so that moments never see what cannot move, and after the step the values. It is read from the checkpoint that
training starts from, never from the parameters of a run that goes on.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from optcore.sparsity import load_sparsity
from optcore.training.ranks import Ranks, own_part, spread_like
from optcore.training.student import Student


class Constraint(ABC):
    """Holds for its parameters when it is made, and after every projection. Parameters may be spread over processes:
    all of these call it in step."""

    @abstractmethod
    def project_gradients(self) -> None:
        """Change the gradients, in place, to those of what is free to move."""

    @abstractmethod
    def project_values(self) -> None:
        """Bring the values back, in place."""


class Mask(Constraint):
    """Zeros of a parameter stay zeros."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self._parameter = parameter
        self._zeros = own_part(parameter.detach()) == 0

    @torch.no_grad()
    def project_gradients(self) -> None:
        """See `Constraint`: nothing of a zero moves."""
        if self._parameter.grad is not None:
            own_part(self._parameter.grad).masked_fill_(self._zeros, 0)

    @torch.no_grad()
    def project_values(self) -> None:
        """See `Constraint`."""
        own_part(self._parameter).masked_fill_(self._zeros, 0)


class Shared(Constraint):
    """Values of one or several parameters are equal wherever their index is: a codebook, hashed weights, tied layers.

    With W = v[index] the gradient of v_b is the sum of those of W where the index is b (Han et al., arXiv:1510.00149,
    section 3): each member gets that sum, and so moves as v_b would. A norm over members counts it as often as there
    are any.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], indices: Sequence[torch.Tensor], buckets: int, ranks: Ranks
    ) -> None:
        """`indices`: whole tensors of int64 in the parameters' shapes, 0 to `buckets` - 1, on every process."""
        self._parameters = tuple(parameters)
        self._ranks = ranks
        self._indices = [
            own_part(spread_like(parameter, index.to(parameter.device))).reshape(-1)
            for parameter, index in zip(parameters, indices, strict=True)
        ]
        self._buckets = buckets
        self._counts = self._summed([torch.ones_like(index, dtype=torch.float64) for index in self._indices])

    @torch.no_grad()
    def project_gradients(self) -> None:
        """See `Constraint`: every member gets the gradient of its bucket's value."""
        for parameter in self._parameters:
            if parameter.grad is None:  # no loss came to it, but perhaps to one that it is tied to
                parameter.grad = torch.zeros_like(parameter)
        gradients = [own_part(parameter.grad) for parameter in self._parameters if parameter.grad is not None]
        self._put(gradients, self._summed(gradients))

    @torch.no_grad()
    def project_values(self) -> None:
        """See `Constraint`: the mean of members, which changes no bit where they are equal already."""
        values = [own_part(parameter) for parameter in self._parameters]
        self._put(values, self._summed(values) / self._counts.clamp(min=1))

    def _summed(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The sum over each bucket's members on all processes, float64 [buckets]."""
        total = torch.zeros(self._buckets, dtype=torch.float64, device=self._ranks.device)
        for part, index in zip(parts, self._indices, strict=True):
            total.index_add_(0, index, part.detach().reshape(-1).double())
        return self._ranks.summed(total)

    def _put(self, targets: Sequence[torch.Tensor], of_buckets: torch.Tensor) -> None:
        for target, index in zip(targets, self._indices, strict=True):
            target.copy_(of_buckets[index].view_as(target))


def constraints_of(student: Student, folder: Path) -> tuple[Constraint, ...]:
    """What the manifests in `folder` ask of the student's parameters that move, as they were read from it.

    Call it after they were spread over processes, and before a checkpoint of the run is loaded into them.
    """
    sparse = load_sparsity(folder)
    if sparse is None:
        return ()
    sources = student.decoder.names.sources
    moving = ((path, one) for path, one in student.model.named_parameters() if one.requires_grad)
    return tuple(Mask(one) for path, one in moving if path in sources and sources[path].stored in sparse.tensors)
