"""What a draft would have guessed of text that is there: one pass of the target and one of the draft for all places.

Shapes: S texts (B of them in a pass) of T tokens, behind P of a prompt; N = T - P - 1 starts; K drafted tokens, V
vocabulary, D the draft's.
"""

from typing import NamedTuple

import torch

from optcore.drafts.draft import Draft
from optcore.drafts.vocabulary import DraftVocabulary
from optcore.speculative.drafter import Drafter
from optcore.speculative.estimate import odds
from optcore.speculative.own_text import OwnText
from optcore.speculative.sampling import GREEDY, Sampling, probabilities
from optcore.speculative.target import Features, Target
from optcore.speculative.walk import Chains

_ROWS = 8
_LOGITS_rows = 512


class Forced(NamedTuple):
    """What a draft did on a text."""

    chains: Chains
    covered: float
    """Probability, in the mean, that the target gives to tokens which the draft can say at all."""


@torch.no_grad()
def teacher_forced(target: Target, draft: Draft, text: OwnText, count: int, sampling: Sampling) -> Forced:
    """Chains of `count` tokens by a draft that is given the text, at all its starts.

    Both distributions are `sampling`'s; `target` keeps the layers that the draft reads. At temperature 0 a token is
    accepted or it is not, and the walk over it is exact. A token's index is n = t + 1: what the draft at position t is
    given as the next one.
    """
    parts = [_of_batch(target, draft, part, count, sampling) for part in text.batches(_ROWS)]
    chains = Chains(torch.cat([odds_BNK for odds_BNK, _ in parts]), text.starts_S)
    return Forced(chains, float(sum(covered for _, covered in parts)) / int(text.lengths_S.sum()))


def followed(drafter: Drafter, text: OwnText, count: int) -> Chains:
    """Chains by a drafter whose guesses are certain and need nothing of the target (n-grams): it reads the text token
    by token, and is asked at each start. A one-hot guess is accepted where the text has it, at any temperature."""
    tokens_ST, begin = text.tokens_ST, text.prompt
    texts, length = tokens_ST.shape
    odds_SNK = torch.zeros(texts, length - begin - 1, count)
    _read(drafter, tokens_ST[:, :begin])
    for start in range(length - begin - 1):
        chosen = begin + start
        proposal = drafter.propose(tokens_ST[:, chosen], count, GREEDY, None)
        real_SR = tokens_ST[:, chosen + 1 : chosen + 1 + count]
        drafted = real_SR.shape[1]
        is_right_SR = proposal.tokens_BK[:, :drafted] == real_SR
        if proposal.valid_BK is not None:
            is_right_SR &= proposal.valid_BK[:, :drafted]
        odds_SNK[:, start, :drafted] = is_right_SR.float()
        _read(drafter, tokens_ST[:, chosen : chosen + 1])
    return Chains(odds_SNK, text.starts_S)


def _read(drafter: Drafter, tokens_BT: torch.Tensor) -> None:
    nothing = Features(torch.zeros(*tokens_BT.shape, 0), ())
    drafter.read(tokens_BT, torch.ones_like(tokens_BT, dtype=torch.bool), nothing)


def _of_batch(
    target: Target, draft: Draft, text: OwnText, count: int, sampling: Sampling
) -> tuple[torch.Tensor, float]:
    """Odds [B, N, K], and the covered mass added up over the tokens that count."""
    tokens_BT, begin = text.tokens_ST.to(target.device), text.prompt
    length = tokens_BT.shape[1]
    positions_BT = torch.arange(length, device=target.device).expand_as(tokens_BT)
    features = target.look({"input_ids": tokens_BT})
    written_BL = tokens_BT[:, begin:]
    counts_BL = torch.arange(length - begin) < text.lengths_S[:, None]
    hidden_BLH = features.hidden_BTH[:, begin - 1 : -1]
    of_target_BL, covered_BL = _of_text(target, hidden_BLH, written_BL, draft.vocabulary, sampling)
    odds_BNK = torch.zeros(len(tokens_BT), length - begin - 1, count)
    for k, hidden_BTH in enumerate(draft.answers(tokens_BT, positions_BT, features, count)):
        said_BMH = hidden_BTH[:, begin - 1 : length - 2 - k]  # answers about tokens P + 1 + k and further
        if not said_BMH.shape[1]:
            break
        of_draft_BM = _drafted(draft, k, said_BMH, written_BL[:, 1 + k :], sampling)
        odds_BNK[:, : said_BMH.shape[1], k] = odds(of_draft_BM, of_target_BL[:, 1 + k :]).cpu()
    return odds_BNK, float(covered_BL.cpu()[counts_BL].double().sum())


def _of_text(
    target: Target, hidden_BLH: torch.Tensor, tokens_BL: torch.Tensor, known: DraftVocabulary, sampling: Sampling
) -> tuple[torch.Tensor, torch.Tensor]:
    """The target's probabilities of the tokens, and of all that the draft can say, [B, L] each."""
    found, covered = [], []
    for hidden_NH, tokens_N in _chunks(hidden_BLH, tokens_BL):
        chances_NV = probabilities(target.logits(hidden_NH), sampling)
        found.append(_at(chances_NV, tokens_N))
        ids_D = known.ids_D.to(chances_NV.device)
        covered.append(torch.ones_like(found[-1]) if known.is_whole else chances_NV[:, ids_D].sum(1))
    return torch.cat(found).view_as(tokens_BL), torch.cat(covered).view_as(tokens_BL)


def _drafted(
    draft: Draft, k: int, hidden_BMH: torch.Tensor, tokens_BM: torch.Tensor, sampling: Sampling
) -> torch.Tensor:
    """The draft's probabilities [B, M] of the tokens."""
    found = [
        _at(probabilities(draft.vocabulary.spread(draft.logits(hidden_NH, k), -torch.inf), sampling), tokens_N)
        for hidden_NH, tokens_N in _chunks(hidden_BMH, tokens_BM)
    ]
    return torch.cat(found).view_as(tokens_BM)


def _chunks(hidden_BLH: torch.Tensor, tokens_BL: torch.Tensor) -> "zip[tuple[torch.Tensor, torch.Tensor]]":
    """A few rows at a time: logits over a large vocabulary outweigh everything else here."""
    return zip(hidden_BLH.flatten(0, 1).split(_LOGITS_rows), tokens_BL.flatten().split(_LOGITS_rows), strict=True)


def _at(chances_NV: torch.Tensor, tokens_N: torch.Tensor) -> torch.Tensor:
    return chances_NV.gather(1, tokens_N[:, None])[:, 0]
