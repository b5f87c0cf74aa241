"""Which drafted tokens stay, by a rule under which the text is distributed exactly as the target alone would write it.

Speculative sampling (Leviathan et al., arXiv:2211.17192, appendix A.1; Chen et al., arXiv:2302.01318, algorithm 2), and
for trees the same over siblings one after another (SpecInfer, arXiv:2305.09781, algorithm 2): a token d drawn from q is
accepted with probability min(1, p(d) / q(d)); where it is not, max(p - q, 0), normalized, is what the next sibling is
judged by, or the next token is drawn from. A token that was not drawn has a one-hot q; at temperature 0 p is one-hot,
and what stays is what equals the target's likeliest token: no other code is needed for either.

Shapes: B sequences, K drafted tokens, T = K + 1 tokens of the chosen one and these, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from optcore.speculative.drafter import Proposal
from optcore.speculative.sampling import Sampling, drawn, probabilities
from optcore.speculative.tree import chain


class Verdict(NamedTuple):
    """What became of a proposal."""

    accepted_BK: torch.Tensor
    """Bool: the tokens on the accepted path."""
    chosen_B: torch.Tensor
    """The token behind that path, which the target chose itself."""


def verify(
    proposal: Proposal, logits_BTV: torch.Tensor, sampling: Sampling, generator: torch.Generator | None
) -> Verdict:
    """Judge drafted tokens by the target's logits at the chosen token and at each of them.

    Tokens are judged in their order, in all sequences at once: where a sequence stands at a token's parent, it moves to
    the token or takes it out of what is left.
    """
    tokens_BK, valid_BK = proposal.tokens_BK, valid_of(proposal)
    parents = chain(tokens_BK.shape[1]) if proposal.parents_K is None else proposal.parents_K
    p_BTV = probabilities(logits_BTV, sampling)
    luck_BK = torch.rand(tokens_BK.shape, generator=generator, dtype=torch.float64, device=tokens_BK.device)
    accepted_BK = torch.zeros_like(valid_BK)
    at_B = torch.full((len(tokens_BK),), -1, device=tokens_BK.device)
    left_BV = p_BTV[:, 0]
    for number, parent in enumerate(parents):
        token_B1 = tokens_BK[:, number, None]
        q_BV = _drawn_from(proposal, valid_BK, parents, number, left_BV)
        is_judged_B = valid_BK[:, number] & (at_B == parent)
        # u < p / q, where u never is 1 and q may be 0
        is_likely_B = luck_BK[:, number] * q_BV.gather(1, token_B1)[:, 0] < left_BV.gather(1, token_B1)[:, 0]
        accepted_BK[:, number] = is_taken_B = is_judged_B & is_likely_B
        is_left_B1 = (is_judged_B & ~is_likely_B)[:, None]
        left_BV = torch.where(is_left_B1, residual(left_BV, q_BV), left_BV)
        left_BV = torch.where(is_taken_B[:, None], p_BTV[:, number + 1], left_BV)
        at_B = torch.where(is_taken_B, number, at_B)
    return Verdict(accepted_BK, drawn(left_BV, generator))


def valid_of(proposal: Proposal) -> torch.Tensor:
    """Which tokens are proposed, bool [B, K]."""
    all_BK = torch.ones_like(proposal.tokens_BK, dtype=torch.bool)
    return all_BK if proposal.valid_BK is None else proposal.valid_BK


def residual(p_BV: torch.Tensor, q_BV: torch.Tensor) -> torch.Tensor:
    """What is left of p when a token drawn from q was rejected; p where rounding alone made them differ."""
    left_BV = (p_BV - q_BV).clamp(min=0)
    total_B1 = left_BV.sum(1, keepdim=True)
    return torch.where(total_B1 > 0, left_BV / total_B1, p_BV)


def _drawn_from(
    proposal: Proposal, valid_BK: torch.Tensor, parents: Sequence[int], number: int, like_BV: torch.Tensor
) -> torch.Tensor:
    """The distribution of a token, given that its earlier siblings were others."""
    token_B1 = proposal.tokens_BK[:, number, None]
    if proposal.probabilities_BKV is None:
        return torch.zeros_like(like_BV).scatter_(1, token_B1, 1.0)
    q_BV = proposal.probabilities_BKV[:, number].to(like_BV.dtype)
    siblings = [before for before in range(number) if parents[before] == parents[number]]
    if not siblings:
        return q_BV
    gone_BV = torch.zeros_like(q_BV, dtype=torch.bool)
    for before in siblings:
        gone_B1, earlier_B1 = valid_BK[:, before, None], proposal.tokens_BK[:, before, None]
        gone_BV.scatter_(1, earlier_B1, gone_BV.gather(1, earlier_B1) | gone_B1)
    rest_BV = q_BV.masked_fill(gone_BV, 0)
    return rest_BV / rest_BV.sum(1, keepdim=True).clamp(min=torch.finfo(rest_BV.dtype).tiny)
