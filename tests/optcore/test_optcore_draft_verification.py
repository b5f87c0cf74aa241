"""Verification of drafted tokens: what comes out is distributed as the target alone would write it.

Shapes: V = 5 tokens, B draws at once.
"""

from typing import NamedTuple

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from optcore.speculative.drafter import Proposal
from optcore.speculative.sampling import GREEDY, Sampling, drawn, probabilities
from optcore.speculative.tree import ancestors, chain, depths, rooted
from optcore.speculative.verification import residual, verify

V, DRAWS = 5, 60_000
ONE = Sampling(temperature=1.0)
CRITICAL = {4: 23.5, 24: 59.7}
"""Chi-square, by degrees of freedom, that chance passes once in ten thousand times."""


class World(NamedTuple):
    """What a target says after 0, 1 and 2 tokens, and a draft after 0 and 1."""

    p: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    q: tuple[torch.Tensor, torch.Tensor]


def _world(kind: str) -> World:
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> torch.Tensor:
        return (2 * torch.randn(*shape, V, generator=generator)).softmax(-1)

    p, q = (random(), random(V), random(V, V)), [random(), random(V)]
    if kind == "holes":  # a draft vocabulary without tokens 0 and 3
        q = [one.index_fill(-1, torch.tensor([0, 3]), 0.0) for one in q]
        q = [one / one.sum(-1, keepdim=True) for one in q]
    if kind == "one-hot":
        q = [torch.nn.functional.one_hot(one.argmax(-1), V).float() for one in q]
    return World(p, (q[0], q[1]))


def _chi_square(counts: torch.Tensor, expected: torch.Tensor) -> float:
    wanted = expected * counts.sum()
    return float(((counts - wanted) ** 2 / wanted).sum())


def _is_fair(first_B: torch.Tensor, second_B: torch.Tensor, world: World) -> None:
    """Of the first token, and of the first two together."""
    joint = world.p[0][:, None] * world.p[1]
    counts = torch.bincount(first_B * V + second_B, minlength=V * V).double()
    assert _chi_square(counts.view(V, V).sum(1), world.p[0].double()) < CRITICAL[4]
    assert _chi_square(counts, joint.double().flatten()) < CRITICAL[24]


@pytest.mark.parametrize("kind", ["random", "holes", "one-hot", "one-hot, unsaid"])
def test_a_chain_leaves_the_distribution_alone(kind: str) -> None:
    world, generator = _world(kind.split(",")[0]), torch.Generator().manual_seed(1)
    d1_B = drawn(world.q[0].expand(DRAWS, -1), generator)
    d2_B = drawn(world.q[1][d1_B], generator)
    said = None if "unsaid" in kind else torch.stack((world.q[0].expand(DRAWS, -1), world.q[1][d1_B]), 1)
    p_BTV = torch.stack((world.p[0].expand(DRAWS, -1), world.p[1][d1_B], world.p[2][d1_B, d2_B]), 1)
    found = verify(Proposal(torch.stack((d1_B, d2_B), 1), said), p_BTV.log(), ONE, generator)
    assert bool((found.accepted_BK[:, 0] | ~found.accepted_BK[:, 1]).all())  # nothing behind a rejected token
    first_B = torch.where(found.accepted_BK[:, 0], d1_B, found.chosen_B)
    behind_B = torch.where(found.accepted_BK[:, 1], d2_B, found.chosen_B)
    again_B = drawn(world.p[1][first_B], generator)  # as the next round would begin
    _is_fair(first_B, torch.where(found.accepted_BK[:, 0], behind_B, again_B), world)
    third = found.accepted_BK.all(1)
    expected = (world.p[2][d1_B, d2_B])[third].double().mean(0)
    assert _chi_square(torch.bincount(found.chosen_B[third], minlength=V).double(), expected) < CRITICAL[4]


@pytest.mark.parametrize("kind", ["random", "holes", "one-hot", "one-hot, unsaid"])
def test_the_share_that_is_accepted(kind: str) -> None:
    """The sum of min(p, q), within four standard errors."""
    world, generator = _world(kind.split(",")[0]), torch.Generator().manual_seed(2)
    d_B1 = drawn(world.q[0].expand(DRAWS, -1), generator)[:, None]
    said = None if "unsaid" in kind else world.q[0].expand(DRAWS, 1, -1)
    found = verify(Proposal(d_B1, said), world.p[0].log().expand(DRAWS, 2, -1), ONE, generator)
    share = float(torch.minimum(world.p[0], world.q[0]).sum())
    assert abs(found.accepted_BK.double().mean() - share) < 4 * (share * (1 - share) / DRAWS) ** 0.5


PARENTS = (-1, -1, 0, 0, 1, -1)
"""Two tokens and two below the first, one below the second; then a third beside the first two."""


def _siblings(q_BV: torch.Tensor, count: int, generator: torch.Generator, how: str) -> tuple[torch.Tensor, ...]:
    if how == "likeliest":
        return tuple(q_BV.topk(count).indices.T)
    return tuple(torch.multinomial(q_BV, count, replacement=False, generator=generator).T)


@pytest.mark.parametrize("how", ["drawn", "drawn, each said by itself", "likeliest"])
def test_a_tree_leaves_the_distribution_alone(how: str) -> None:
    world, generator = _world("random"), torch.Generator().manual_seed(3)
    root_BV = world.q[0].expand(DRAWS, -1)
    a_B, b_B, c_B = _siblings(root_BV, 3, generator, how)
    below_a, below_b = world.q[1][a_B], world.q[1][b_B]
    aa_B, ab_B = _siblings(below_a, 2, generator, how)
    (ba_B,) = _siblings(below_b, 1, generator, how)
    tokens_BK = torch.stack((a_B, b_B, aa_B, ab_B, ba_B, c_B), 1)
    q_BKV = torch.stack((root_BV, root_BV, below_a, below_a, below_b, root_BV), 1).clone()
    if "each" in how:  # what a later sibling was drawn from, the earlier ones taken out by the draft
        for number, earlier in ((1, [a_B]), (3, [aa_B]), (5, [a_B, b_B])):
            q_BKV[:, number].scatter_(1, torch.stack(earlier, 1), 0)
    p_BTV = torch.stack(
        (
            world.p[0].expand(DRAWS, -1),
            *(world.p[1][one] for one in (a_B, b_B)),
            *(world.p[2][a_B, one] for one in (aa_B, ab_B)),
            world.p[2][b_B, ba_B],
            world.p[1][c_B],
        ),
        1,
    )
    proposal = Proposal(tokens_BK, None if how == "likeliest" else q_BKV, PARENTS)
    found = verify(proposal, p_BTV.log(), ONE, generator)
    lengths_B = found.accepted_BK.sum(1)
    assert bool((found.accepted_BK[:, [0, 1, 5]].sum(1) <= 1).all())
    first_B = torch.where(lengths_B > 0, _nth(found.accepted_BK, tokens_BK, 0), found.chosen_B)
    second_B = torch.where(lengths_B > 1, _nth(found.accepted_BK, tokens_BK, 1), found.chosen_B)
    second_B = torch.where(lengths_B > 0, second_B, drawn(world.p[1][first_B], generator))
    _is_fair(first_B, second_B, world)
    assert all(bool((lengths_B == length).any()) for length in (0, 1, 2))


def _nth(accepted_BK: torch.Tensor, tokens_BK: torch.Tensor, nth: int) -> torch.Tensor:
    order_BK = accepted_BK.int().argsort(dim=1, descending=True, stable=True)
    return tokens_BK.gather(1, order_BK)[:, nth]


def test_tokens_that_are_not_proposed_change_nothing() -> None:
    """A first token, a second sibling and a whole row that are filler."""
    world, generator = _world("random"), torch.Generator().manual_seed(4)
    a_B, b_B = _siblings(world.q[0].expand(DRAWS, -1), 2, generator, "drawn")
    valid_BK = torch.ones(DRAWS, 2, dtype=torch.bool)
    valid_BK[::3, 0], valid_BK[1::3, 1], valid_BK[::5] = False, False, False
    # a first sibling that was filler was never drawn: the second is then drawn from all of q
    b_B = torch.where(valid_BK[:, 0], b_B, drawn(world.q[0].expand(DRAWS, -1), generator))
    p_BTV = torch.stack((world.p[0].expand(DRAWS, -1), world.p[1][a_B], world.p[1][b_B]), 1)
    proposal = Proposal(torch.stack((a_B, b_B), 1), world.q[0].expand(DRAWS, 2, -1), (-1, -1), valid_BK)
    found = verify(proposal, p_BTV.log(), ONE, generator)
    assert not bool((found.accepted_BK & ~valid_BK).any())
    drafted_B = _nth(found.accepted_BK, proposal.tokens_BK, 0)
    first_B = torch.where(found.accepted_BK.any(1), drafted_B, found.chosen_B)
    second_B = torch.where(found.accepted_BK.any(1), found.chosen_B, drawn(world.p[1][first_B], generator))
    _is_fair(first_B, second_B, world)


def test_greedy_takes_what_the_target_would_have_said() -> None:
    """Against the rule written out: equal tokens, then the target's own."""
    generator = torch.Generator().manual_seed(6)
    logits_BTV = torch.randn(200, 4, V, generator=generator)
    tokens_BK = torch.randint(0, V, (200, 3), generator=generator)
    tokens_BK[::2] = logits_BTV[::2, :3].argmax(-1)
    likeliest_BT = logits_BTV.argmax(-1)
    found = verify(Proposal(tokens_BK), logits_BTV, GREEDY, None)
    for row in range(200):
        same = 0
        while same < 3 and tokens_BK[row, same] == likeliest_BT[row, same]:
            same += 1
        assert found.accepted_BK[row].tolist() == [True] * same + [False] * (3 - same)
        assert found.chosen_B[row] == likeliest_BT[row, same]


def test_what_is_left_of_equals_is_the_target_itself() -> None:
    p_BV = torch.tensor([[0.2, 0.8], [0.5, 0.5]])
    assert residual(p_BV, torch.tensor([[0.2, 0.8], [1.0, 0.0]])).tolist() == [
        pytest.approx([0.2, 0.8]),
        [0.0, 1.0],
    ]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(0.7, None, None), (1.0, 7, None), (1.0, None, 0.6), (1.3, 40, 0.9), (0.5, 500, 1.0), (1.0, None, 0.01)],
)
def test_sampling_is_that_of_transformers(temperature: float, top_k: int | None, top_p: float | None) -> None:
    logits_NV = 3 * torch.randn(16, 97, generator=torch.Generator().manual_seed(7))
    logits_NV[0, :50] = 1.0  # equals at the border
    wanted = TemperatureLogitsWarper(temperature)(None, logits_NV)
    if top_k is not None:
        wanted = TopKLogitsWarper(top_k)(None, wanted)
    if top_p is not None:
        wanted = TopPLogitsWarper(top_p)(None, wanted)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    assert torch.equal(probabilities(logits_NV, sampling), wanted.softmax(-1))
    assert probabilities(logits_NV.bfloat16(), sampling).dtype == torch.float32
    assert probabilities(logits_NV.double(), sampling).dtype == torch.float64
    assert torch.equal(probabilities(logits_NV[:, None], sampling)[:, 0], wanted.softmax(-1))


def test_temperature_0_is_one_hot() -> None:
    logits_NV = torch.randn(8, 11, generator=torch.Generator().manual_seed(8))
    p_NV = probabilities(logits_NV, Sampling(top_k=3, top_p=0.5))
    assert torch.equal(p_NV.argmax(-1), logits_NV.argmax(-1))
    assert p_NV.sum() == p_NV.max(-1).values.sum() == 8


def test_trees() -> None:
    assert depths(PARENTS) == [0, 0, 1, 1, 1, 0]
    assert depths(chain(3)) == [0, 1, 2]
    assert rooted(PARENTS) == (-1, 0, 0, 1, 1, 2, 0)
    assert torch.equal(ancestors(chain(4)), torch.ones(4, 4, dtype=torch.bool).tril())
    assert ancestors(rooted(PARENTS))[5].nonzero().flatten().tolist() == [0, 2, 5]
    with pytest.raises(AssertionError, match="before its children"):
        depths((0,))
