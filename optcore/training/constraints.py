"""What a restructuring made of weights, kept while they train.

A constraint is a linear subspace that parameters lie in. Before each step of the optimizer their gradients are brought
into it, so that moments never see what cannot move, and after the step the values. It is read from the checkpoint that
training starts from, never from the parameters of a run that goes on.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from optcore.sparsity import load_sparsity
from optcore.streaming.names import Source
from optcore.streaming.reader import TensorReader
from optcore.streaming.shares import shares_of
from optcore.training.ranks import Ranks, own_part, spread_like
from optcore.training.student import Student

_PLACE_bytes, _SUM_bytes = 9, 8
"""Of a weight: an index of int64 and a sign of int8. Of a number: float64."""


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

    With W = s v[index], s = +1 or -1, the gradient of v_b is the sum of s times those of W where the index is b (Han et
    al., arXiv:1510.00149, section 3; Chen et al., arXiv:1504.04788, equation 12): each member gets s times that sum,
    and so moves as s v_b would. A norm over members would count it as often as there are any: see `gradient_norm`.
    """

    gradient_norm = 0.0
    """Of the gradients of v, each counted once, as they were last projected."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        indices: Sequence[torch.Tensor],
        buckets: int,
        ranks: Ranks,
        signs: Sequence[torch.Tensor] | None = None,
    ) -> None:
        """`indices`, and `signs` where there are any: whole tensors of int64 and int8 in the parameters' shapes, 0 to
        `buckets` - 1, on every process."""
        self.parameters = tuple(parameters)
        self._ranks = ranks
        self._indices, self._signs = (
            [
                own_part(spread_like(parameter, each.to(parameter.device).contiguous())).reshape(-1)
                for parameter, each in zip(parameters, of_members, strict=True)
            ]
            for of_members in (indices, signs or [torch.ones_like(index, dtype=torch.int8) for index in indices])
        )
        self._buckets = buckets
        self._counts = self._summed(self._signs)  # a sign times itself is 1

    @torch.no_grad()
    def project_gradients(self) -> None:
        """See `Constraint`: every member gets the gradient of its bucket's value."""
        for parameter in self.parameters:
            if parameter.grad is None:  # no loss came to it, but perhaps to one that it is tied to
                parameter.grad = torch.zeros_like(parameter)
        gradients = [own_part(parameter.grad) for parameter in self.parameters if parameter.grad is not None]
        of_buckets = self._summed(gradients)
        self.gradient_norm = float(torch.linalg.vector_norm(of_buckets))
        self._put(gradients, of_buckets)

    @torch.no_grad()
    def project_values(self) -> None:
        """See `Constraint`: the mean of members, which changes no bit where they are equal already."""
        values = [own_part(parameter) for parameter in self.parameters]
        self._put(values, self._summed(values) / self._counts.clamp(min=1))

    def _summed(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The sum over each bucket's members, times their signs, on all processes, float64 [buckets]."""
        total = torch.zeros(self._buckets, dtype=torch.float64, device=self._ranks.device)
        for part, index, sign in zip(parts, self._indices, self._signs, strict=True):
            total.index_add_(0, index, part.detach().reshape(-1).double() * sign)
        return self._ranks.summed(total)

    def _put(self, targets: Sequence[torch.Tensor], of_buckets: torch.Tensor) -> None:
        for target, index, sign in zip(targets, self._indices, self._signs, strict=True):
            target.copy_((of_buckets[index] * sign).view_as(target))


def constraints_of(student: Student, folder: Path, ranks: Ranks) -> tuple[Constraint, ...]:
    """What the manifests in `folder` ask of the student's parameters that move, as they were read from it.

    Call it after they were spread over processes, and before a checkpoint of the run is loaded into them.
    """
    sources = student.decoder.names.sources
    named = [(path, one) for path, one in student.model.named_parameters() if one.requires_grad and path in sources]
    moving = [(one, sources[path]) for path, one in named]
    sparse = load_sparsity(folder)
    masks = [Mask(one) for one, source in moving if sparse and source.stored in sparse.tensors]
    return (*masks, *_shared(moving, folder, ranks))


def _shared(moving: Sequence[tuple[nn.Parameter, Source]], folder: Path, ranks: Ranks) -> Iterator[Shared]:
    for share in shares_of(folder):
        members = [(one, source) for one, source in moving if source.stored in share.names]
        if members:
            place, sign = (each.to(ranks.device) for each in share.places())  # once for all members
            places, signs = ([source.of(each) for _, source in members] for each in (place, sign))
            yield Shared([one for one, _ in members], places, share.count, ranks, signs)


def held_bytes(folder: Path, processes: int = 1) -> float:
    """Bytes that each process holds for the constraints of a checkpoint that trains as a whole, with what passes
    through while values are brought back: where every weight's number is, 8 bytes and a sign, and float64 sums."""
    sparse, reader = load_sparsity(folder), TensorReader(folder)
    zeros = sum(math.prod(reader.shape(name)) for name in (sparse.tensors if sparse else ())) / processes
    places, counts, passing = 0.0, 0, 0.0
    for share in shares_of(folder):
        each = math.prod(reader.shape(share.names[0]))
        # one process looks the same places up for all tensors, several hold each one's own part
        places += each if processes == 1 else each * len(share.names) / processes
        counts += share.count
        passing = max(passing, share.count + 2 * each / processes, 3 * share.count)  # weights, or means of numbers
    return zeros + _PLACE_bytes * places + _SUM_bytes * (counts + passing)
