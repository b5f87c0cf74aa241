"""An EAGLE-3 draft at work: a KV cache of what is settled, and chains or trees of guesses that leave no trace in it.

Shapes: B sequences, T tokens read, S settled places, P places that ask at once, K proposed tokens, H hidden size, D
draft vocabulary, V the target's.
"""

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch.nn.functional import pad

from optcore.drafts.drawing import Drawn
from optcore.drafts.layers import KeysValues
from optcore.drafts.slots import last_of, left_aligned
from optcore.frozen import Frozen
from optcore.speculative.drafter import Proposal
from optcore.speculative.sampling import Sampling
from optcore.speculative.target import Features

if TYPE_CHECKING:
    from optcore.drafts.eagle3 import Eagle3


class TreeShape(Frozen):
    """How a tree grows (EAGLE-2, arXiv:2406.16858): every level from the likeliest tokens of the one before it."""

    depth: int = Field(default=5, ge=1, le=32)
    """Levels."""
    branches: int = Field(default=8, ge=1, le=1024)
    """Tokens of a level that the draft goes on from, and guesses behind each."""


class Guesses:
    """A round: the draft goes on from its own states, at as many places at once as it likes."""

    def __init__(self, draft: "Eagle3", past: KeysValues, length_B: torch.Tensor, hidden_BH: torch.Tensor) -> None:
        self._draft, self._past, self._length_B = draft, past, length_B
        self._hidden_BPH = hidden_BH[:, None]
        self._own: list[KeysValues] = []
        places_S = torch.arange(past.keys.shape[1], device=length_B.device)
        self._seen_B1S = (places_S < length_B[:, None])[:, None]

    def step(self, tokens_BP: torch.Tensor) -> torch.Tensor:
        """Logits [B, P, D] of what follows each place's token."""
        positions_BP = (self._length_B[:, None] + len(self._own)).expand_as(tokens_BP)
        layer = self._draft.midlayer
        asking = layer.ask(self._draft.embedded(tokens_BP), self._hidden_BPH, positions_BP)
        self._own.append(asking.own)
        self._hidden_BPH = layer.answer(
            asking, self._past, self._seen_B1S.expand(-1, tokens_BP.shape[1], -1), self._own
        )
        return self._draft.logits(self._draft.norm(self._hidden_BPH))

    def branch(self, places_P: torch.Tensor) -> None:
        """Go on from these places, some of them several times."""
        self._hidden_BPH = self._hidden_BPH[:, places_P]
        self._own = [one.picked(places_P) for one in self._own]


class Eagle3Drafter:
    """See `Drafter`. A token's place holds its features and the token behind it, so the last one waits for that."""

    def __init__(self, draft: "Eagle3", sequences: int, tree: TreeShape | None = None) -> None:
        """Raises `ValueError` for a tree of several sequences: they share one shape, and a tree grows as it likes."""
        if tree and sequences != 1:
            raise ValueError(f"a tree is drafted for one sequence, not for {sequences}")
        self.taps = draft.taps
        self._draft, self._tree = draft, tree
        sizes, weight = draft.sizes, draft.fc.weight
        empty = weight.new_zeros(sequences, 0, sizes.num_key_value_heads, sizes.head_dim)
        self._past = KeysValues(empty, empty)
        self._length_B = torch.zeros(sequences, dtype=torch.long, device=weight.device)
        self._waiting_BH = weight.new_zeros(sequences, sizes.hidden_size)
        self._waits_B = torch.zeros(sequences, dtype=torch.bool, device=weight.device)

    @torch.no_grad()
    def read(self, tokens_BT: torch.Tensor, valid_BT: torch.Tensor, features: Features) -> None:
        """See `Drafter`."""
        hidden = torch.cat((self._waiting_BH[:, None], self._draft.fused(features)), 1)
        valid = torch.cat((self._waits_B[:, None], valid_BT), 1)
        counts_B, hidden, tokens = left_aligned(valid, hidden, pad(tokens_BT, (1, 0)))
        settled_BT = torch.arange(tokens_BT.shape[1], device=counts_B.device) < counts_B[:, None] - 1
        positions_BT = self._length_B[:, None] + torch.arange(tokens_BT.shape[1], device=counts_B.device)
        asking = self._draft.midlayer.ask(self._draft.embedded(tokens[:, 1:]), hidden[:, :-1], positions_BT)
        self._keep(asking.own, settled_BT)
        self._waiting_BH, self._waits_B = last_of(hidden, counts_B), counts_B > 0

    @torch.no_grad()
    def propose(
        self, chosen_B: torch.Tensor, count: int, sampling: Sampling, generator: torch.Generator | None
    ) -> Proposal:
        """See `Drafter`. A tree's tokens are its likeliest `count`, not drawn, whatever the sampling is."""
        guesses = Guesses(self._draft, self._past, self._length_B, self._waiting_BH)
        if self._tree:
            return self._grown(guesses, chosen_B, count, self._tree)
        drawn, tokens_B = Drawn(self._draft.vocabulary, sampling, generator), chosen_B
        for _ in range(count):
            tokens_B = drawn.draw(guesses.step(tokens_B[:, None])[:, 0])
        return drawn.proposal

    def _grown(self, guesses: Guesses, chosen_B: torch.Tensor, count: int, shape: TreeShape) -> Proposal:
        """The `count` tokens whose paths the draft finds likeliest: a path is never likelier than what it begins with,
        so each has its parent among them."""
        tokens_P, scores_P, numbers_P = chosen_B, chosen_B.new_zeros(1, dtype=torch.float64), chosen_B.new_tensor([-1])
        found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        made = 0
        for _ in range(shape.depth):
            shares_PD = guesses.step(tokens_P[None])[0].double().log_softmax(-1)
            best = shares_PD.topk(min(shape.branches, shares_PD.shape[-1]), -1)
            width = best.indices.shape[-1]
            tokens = self._draft.vocabulary.ids_D[best.indices].flatten()
            scores = (scores_P[:, None] + best.values).flatten()
            found.append((tokens, scores, numbers_P.repeat_interleave(width)))
            chosen = scores.argsort(descending=True, stable=True)[: shape.branches]
            tokens_P, scores_P, numbers_P = tokens[chosen], scores[chosen], chosen + made
            guesses.branch(chosen // width)
            made += len(tokens)
        tokens, scores, parents = (torch.cat(parts) for parts in zip(*found, strict=True))
        kept = scores.argsort(descending=True, stable=True)[:count].sort().values
        place = {number: index for index, number in enumerate(kept.tolist())} | {-1: -1}
        return Proposal(tokens[None, kept], parents_K=tuple(place[one] for one in parents[kept].tolist()))

    def _keep(self, new: KeysValues, settled_BT: torch.Tensor) -> None:
        """Put what is settled behind what each row has."""
        rows, columns = settled_BT.nonzero(as_tuple=True)
        places = self._length_B[rows] + columns
        self._length_B = self._length_B + settled_BT.sum(1)
        grown = max(0, int(self._length_B.max()) - self._past.keys.shape[1])
        keys, values = (pad(one, (0, 0, 0, 0, 0, grown)) for one in self._past)
        keys[rows, places], values[rows, places] = new.keys[rows, columns], new.values[rows, columns]
        self._past = KeysValues(keys, values)
