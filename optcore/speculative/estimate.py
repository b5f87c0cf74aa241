"""How many drafted tokens are accepted, from what target and draft say of text that the target drew itself.

For a chain x_1..x_k, sum over x of prod_i min(p_i, q_i) = E_{x~p} prod_i min(1, q_i(x_i) / p_i(x_i)): the left side is
the probability that rejection sampling (Leviathan et al., arXiv:2211.17192) accepts k tokens, the right side a mean
over the target's own text, without bias. The same holds for drafts that guess in parallel, whose q_i do not depend on
x.

Shapes: S texts, N starts, K drafted tokens.
"""

import torch

from optcore.speculative.walk import Chains


def odds(of_draft: torch.Tensor, of_target: torch.Tensor) -> torch.Tensor:
    """min(1, q/p) of tokens that the target drew, of any shape.

    A token at the border of top-k or top-p can be out of reach when its logits are computed in another pass: whatever
    the draft gives it then suffices.
    """
    return torch.where(of_target > 0, (of_draft / of_target).clamp(max=1), (of_draft > 0).to(of_draft))


def survival(chains: Chains, *, by_round: bool = True) -> torch.Tensor:
    """P(at least k accepted) for k = 1..K, float64 [K], of the drafted tokens that lie within the text.

    `by_round` takes the starts of real rounds; else all starts alike, as the estimator of the equation above does.
    """
    weights_SNK = _weights(chains, by_round)
    return (weights_SNK * chains.reached_SNK).sum((0, 1)) / weights_SNK.sum((0, 1))


def conditional(chains: Chains, *, by_round: bool = True) -> torch.Tensor:
    """P(the k-th is accepted | all before it were) for k = 1..K, float64 [K]; NaN where none came so far."""
    weights_SNK = _weights(chains, by_round)
    reached_SNK = chains.reached_SNK
    before_SNK = torch.cat((torch.ones_like(reached_SNK[..., :1]), reached_SNK[..., :-1]), -1)
    return (weights_SNK * reached_SNK).sum((0, 1)) / (weights_SNK * before_SNK).sum((0, 1))


def _weights(chains: Chains, by_round: bool) -> torch.Tensor:
    """How much each drafted token counts, [S, N, K]: not at all behind the text."""
    return chains.is_text_SNK * chains.visits_SN[..., None] if by_round else chains.is_text_SNK.double()
