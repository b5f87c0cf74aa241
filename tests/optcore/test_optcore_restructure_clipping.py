"""The norm of gradients where many places share a number: against autograd of the numbers themselves, in float64."""

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from optcore.training.clipping import clip_gradients
from optcore.training.constraints import Constraint, Mask, Shared
from optcore.training.ranks import Ranks

torch.set_num_threads(1)


@pytest.mark.parametrize("largest", [0.5, 1e6])
def test_a_shared_number_counts_once(largest: float) -> None:
    """Two weights on one codebook with signs, tied copies, and one that is free."""
    generator = torch.Generator().manual_seed(4)
    indices = [torch.randint(0, 5, shape, generator=generator) for shape in ((4, 6), (3, 7))]
    signs = [1 - 2 * torch.randint(0, 2, one.shape, generator=generator) for one in indices]
    values, tied, free = (
        nn.Parameter(torch.randn(shape, generator=generator).double()) for shape in ((5,), (2, 3), (7,))
    )
    weights = [nn.Parameter((values[i] * s).detach().float()) for i, s in zip(indices, signs, strict=True)]
    copies = [nn.Parameter(tied.detach().float()) for _ in range(3)]
    alone = nn.Parameter(free.detach().float())
    factors = [torch.randn(one.shape, generator=generator) for one in (*weights, *copies, alone)]
    constraints = [
        Shared(weights, indices, 5, Ranks(), signs),
        Shared(copies, [torch.arange(6).view(2, 3)] * 3, 6, Ranks()),
    ]

    def loss(tensors: list[torch.Tensor]) -> torch.Tensor:
        return sum(((x * f).tanh() ** 2).sum() for x, f in zip(tensors, factors, strict=True))  # type: ignore[return-value]

    loss([*weights, *copies, alone]).backward()
    loss([*(values[i] * s for i, s in zip(indices, signs, strict=True)), tied, tied, tied, free]).backward()
    exact = [one.grad for one in (values, tied, free)]
    expected = float(torch.cat([one.flatten() for one in exact if one is not None]).norm())
    for constraint in constraints:
        constraint.project_gradients()
    parameters = [*weights, *copies, alone]
    before = [one.grad.clone() for one in parameters if one.grad is not None]
    by_members = float(torch.cat([one.flatten() for one in before]).norm())
    found = clip_gradients(parameters, largest, constraints)
    assert found == pytest.approx(expected, rel=1e-6)
    assert by_members > 1.2 * expected  # what each member alone would have made of it
    scale = min(1.0, largest / expected)
    for parameter, old in zip(parameters, before, strict=True):
        torch.testing.assert_close(parameter.grad, old * scale, rtol=1e-5, atol=0)


@pytest.mark.parametrize("is_masked", [False, True])
def test_without_shared_numbers_every_bit_is_pytorch_s(is_masked: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    own, theirs = ([nn.Parameter(torch.zeros(3, 5)), nn.Parameter(torch.zeros(8))] for _ in range(2))
    for one, other in zip(own, theirs, strict=True):
        one.grad = torch.randn(one.shape, generator=generator)
        other.grad = one.grad.clone()
    constraints: list[Constraint] = [Mask(nn.Parameter(torch.ones(2)))] if is_masked else []
    assert clip_gradients(own, 0.7, constraints) == float(clip_grad_norm_(theirs, 0.7))
    for one, other in zip(own, theirs, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)
