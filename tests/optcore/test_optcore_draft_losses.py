"""Losses of a draft against their definitions over whole logits, in float64, gradients too."""

import pytest
import torch
from torch import nn

from optcore.drafts.vocabulary import DraftVocabulary
from optcore.training.draft_losses import DraftLoss
from optcore.training.head import Head

torch.set_num_threads(1)
N, H, G, V = 11, 6, 5, 13
IDS = torch.tensor([0, 1, 4, 6, 9, 12])
PARTIAL, WHOLE = DraftVocabulary(IDS, V), DraftVocabulary.whole(V)


def _head(inside: int, outside: int, *, plain: bool) -> Head:
    linear = nn.Linear(inside, outside, bias=not plain).double()
    return Head(linear, None if plain else lambda logits: torch.tanh(logits / 2) * 2)


def _logits(head: Head, hidden: torch.Tensor) -> torch.Tensor:
    found = head.linear(hidden)
    return head.transform(found) if head.transform else found


def _naive(kind: str, draft: torch.Tensor, target: torch.Tensor, ids_D: torch.Tensor) -> torch.Tensor:
    """Losses [N] of logits [N, D] and [N, V], as the papers have them."""
    q, p = draft.softmax(-1), target.softmax(-1)[:, ids_D]
    renormalized = p / p.sum(-1, keepdim=True)
    kl = (renormalized * (renormalized / q).log()).sum(-1)
    if kind == "kl":
        return kl
    alpha = torch.minimum(p, q).sum(-1)
    share = (-3 * alpha).exp().detach()
    return share * kl + (1 - share) * (1 - alpha)


@pytest.mark.parametrize("kind", ["kl", "lk"])
@pytest.mark.parametrize("vocabulary", [PARTIAL, WHOLE], ids=["partial", "whole"])
@pytest.mark.parametrize("plain", [True, False])
def test_losses_and_gradients_are_those_of_the_definition(kind: str, vocabulary: DraftVocabulary, plain: bool) -> None:
    torch.manual_seed(3)
    target, head = _head(G, V, plain=plain), _head(H, len(vocabulary.ids_D), plain=plain)
    hidden_NH = torch.randn(N, H, dtype=torch.float64, requires_grad=True)
    said_NG = torch.randn(N, G, dtype=torch.float64)
    wanted_N = _naive(kind, _logits(head, hidden_NH), _logits(target, said_NG), vocabulary.ids_D)
    loss = DraftLoss(target, vocabulary, kind)  # type: ignore[arg-type]
    found = loss.summed(hidden_NH, head, said_NG)
    assert abs(float((found - wanted_N.sum()).detach())) < 1e-12
    asked = [hidden_NH, *head.linear.parameters()]
    pairs = zip(torch.autograd.grad(found, asked), torch.autograd.grad(wanted_N.sum(), asked), strict=True)
    assert all((own - naive).abs().max() < 1e-12 for own, naive in pairs)
    assert all(parameter.grad is None for parameter in target.linear.parameters())
    assert (loss.compared(hidden_NH, head, said_NG).losses_N.double() - wanted_N).abs().max() < 1e-6


def test_what_is_compared_is_over_the_targets_tokens() -> None:
    torch.manual_seed(4)
    target, head = _head(G, V, plain=True), _head(H, len(IDS), plain=True)
    hidden_NH, said_NG = torch.randn(200, H, dtype=torch.float64), torch.randn(200, G, dtype=torch.float64)
    found = DraftLoss(target, PARTIAL, "kl").compared(hidden_NH, head, said_NG)
    q_NV = PARTIAL.spread(_logits(head, hidden_NH).softmax(-1), 0.0)
    p_NV = _logits(target, said_NG).softmax(-1)
    assert (found.acceptance_N.double() - torch.minimum(p_NV, q_NV).sum(-1)).abs().max() < 1e-6
    assert torch.equal(found.agrees_N, q_NV.argmax(-1) == p_NV.argmax(-1))
    assert 0 < found.agrees_N.float().mean() < 1


def test_a_draft_that_says_what_the_target_says_is_accepted_always() -> None:
    torch.manual_seed(5)
    target, hidden_NG = _head(G, V, plain=True), torch.randn(N, G, dtype=torch.float64)
    for kind in ("kl", "lk"):
        found = DraftLoss(target, WHOLE, kind).compared(hidden_NG, target, hidden_NG)  # type: ignore[arg-type]
        assert found.losses_N.abs().max() < 1e-6
        assert (found.acceptance_N - 1).abs().max() < 1e-6
        assert found.agrees_N.all()
