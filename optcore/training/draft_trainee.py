"""A draft and its loss as one module: how far each of its answers is from what the target says there.

Shapes: B windows of T tokens, A places that are asked in each, N rows that count, H hidden size.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import pad

from optcore.drafts.anchors import drawn_anchors
from optcore.drafts.draft import Draft
from optcore.speculative.target import Features
from optcore.training.draft_features import FeatureSource
from optcore.training.draft_losses import DraftLoss
from optcore.training.learner import Learner
from optcore.training.windows import BEGINS, LEARNED, Batch


class DraftTrainee(Learner):
    """Trains `depth` answers, each further one counting `decay` as much as the one before it; measures `drafted`.

    The target is beside it, in `source`, and never trains.
    """

    def __init__(
        self, draft: Draft, source: FeatureSource, loss: DraftLoss, *, depth: int, decay: float, drafted: int
    ) -> None:
        super().__init__()
        self.draft = draft
        self._source, self._answers_loss = source, loss
        self._weights = tuple(decay**k for k in range(depth))
        self._drafted = drafted

    @property
    def measures(self) -> tuple[str, ...]:
        """By answer the loss, how often both find the same token likeliest, and how likely its token is accepted.

        `length` and `greedy_length` are tokens a round, the target's own among them: 1 and the products of what is
        accepted up to each answer, at temperature 1 and 0. All are of the positions whose every answer counts.
        """
        numbers = range(1, self._drafted + 1)
        by_answer = (f"{name}_{number}" for name in ("loss", "agreement", "acceptance") for number in numbers)
        return ("tokens", *by_answer, "length", "greedy_length", "refused")

    @property
    def measure(self) -> str:
        """Drafted tokens a round that are not accepted: low where rounds are long."""
        return "refused"

    def counts(self, batch: Batch) -> torch.Tensor:
        """Positions whose first answer is learned, bool [B, T]."""
        return answered(batch, 0)

    def _loss(self, batch: Batch, windows: list[int], progress: float) -> torch.Tensor:
        asked = self._asked(batch, self._source.features(batch, windows))
        parts = []
        for k, (weight, hidden_BAH) in enumerate(zip(self._weights, asked.answers, strict=True)):
            counts_BA = asked.at(answered(batch, k))
            said_NH = asked.at(_about(asked.features.hidden_BTH, k))[counts_BA]
            loss = self._answers_loss.summed(hidden_BAH[counts_BA], self.draft.head(k), said_NH)
            parts.append(weight * loss)
        may_BT = self.counts(batch)
        return torch.stack(parts).sum() * (may_BT.sum() / asked.at(may_BT).sum().clamp(min=1))

    def _asked(self, batch: Batch, features: Features) -> "_Asked":
        """Everywhere; or in a few places of each window, drawn by the step's own random numbers, that stand for all."""
        tokens_BT, positions_BT, count = batch.tokens_BT, batch.positions_BT, len(self._weights)
        if self.draft.anchors is None:
            return _Asked(features, self.draft.answers(tokens_BT, positions_BT, features, count), None)
        places_BA = drawn_anchors(self.counts(batch), self.draft.anchors, torch.default_generator)
        answers = self.draft.answers_at(places_BA, tokens_BT, positions_BT, features, count)
        return _Asked(features, answers, places_BA)

    @torch.no_grad()
    def _compared(self, batch: Batch, windows: list[int]) -> dict[str, torch.Tensor]:
        features = self._source.features(batch, windows)
        counts_BT = all_answered(batch, self._drafted)
        sums = {"tokens": counts_BT.sum().double()}
        agreements, acceptances = [], []
        answers = self.draft.answers(batch.tokens_BT, batch.positions_BT, features, self._drafted)
        for k, hidden_BTH in enumerate(answers):
            said_NH = _about(features.hidden_BTH, k)[counts_BT]
            found = self._answers_loss.compared(hidden_BTH[counts_BT], self.draft.head(k), said_NH)
            agreements.append(found.agrees_N.double())
            acceptances.append(found.acceptance_N.double())
            sums[f"loss_{k + 1}"] = found.losses_N.double().sum()
            sums[f"agreement_{k + 1}"] = agreements[-1].sum()
            sums[f"acceptance_{k + 1}"] = acceptances[-1].sum()
        sums["length"], sums["greedy_length"] = (_lengths(shares).sum() for shares in (acceptances, agreements))
        sums["refused"] = (1 + self._drafted) * sums["tokens"] - sums["length"]
        return sums


class _Asked(NamedTuple):
    """A batch, and what a draft answers about it."""

    features: Features
    answers: Iterator[torch.Tensor]
    places_BA: torch.Tensor | None
    """None: all."""

    def at(self, values_BT: torch.Tensor) -> torch.Tensor:
        """Values [B, T, ...] where it was asked, [B, A, ...]."""
        if self.places_BA is None:
            return values_BT
        return values_BT[torch.arange(len(values_BT), device=values_BT.device)[:, None], self.places_BA]


def answered(batch: Batch, k: int) -> torch.Tensor:
    """Positions t, bool [B, T], whose k-th answer is learned: token t+2+k is, and the document had begun by t."""
    ahead = 2 + k
    learned_BT = ((batch.flags_BT & LEARNED) != 0) & ((batch.flags_BT & BEGINS) == 0)
    return pad((learned_BT & (batch.positions_BT >= ahead))[:, ahead:], (0, min(ahead, learned_BT.shape[1])))


def all_answered(batch: Batch, count: int) -> torch.Tensor:
    """Positions, bool [B, T], of whose first answers so many are learned, all of them."""
    return torch.stack([answered(batch, k) for k in range(count)]).all(0)


def _about(hidden_BTH: torch.Tensor, k: int) -> torch.Tensor:
    """Where position t holds what the target says of token t+2+k."""
    return hidden_BTH.roll(-1 - k, 1)


def _lengths(shares: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tokens a round [N], of the shares that accept each answer."""
    return 1 + torch.stack(list(shares)).cumprod(0).sum(0)
