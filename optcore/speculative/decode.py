"""Decoding: a target writes, and a drafter may guess ahead of it; without one it is plain decoding by the same loop.

Shapes: B rows, T tokens of a block, K drafted tokens, W tokens that a round settles, V vocabulary, H hidden size.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from optcore.speculative.drafter import Drafter, Proposal
from optcore.speculative.sampling import Sampling, drawn, probabilities
from optcore.speculative.session import Session
from optcore.speculative.stopping import NEVER, Stop
from optcore.speculative.target import Features, Target
from optcore.speculative.tree import depths, rooted
from optcore.speculative.verification import valid_of, verify


class Decoded(NamedTuple):
    """What was written behind each prompt."""

    tokens: list[list[int]]
    """The new ones, what ended a text included."""
    accepted: list[list[int]]
    """Of each row's rounds, how many drafted tokens came into its text. Each also brings the target's own token, unless
    the text ends before it; the very first token is of no round."""
    passes: int
    """How often the target was asked, about the prompts too."""


@torch.no_grad()
def generate(
    target: Target,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    sampling: Sampling,
    drafter: Callable[[int], Drafter] | None = None,
    count: int = 5,
    stop: Stop = NEVER,
    seed: int = 0,
) -> Decoded:
    """Write at most `new_tokens` tokens behind each prompt; `drafter`, given the number of rows, guesses `count` ahead.

    Nothing is drafted beyond `new_tokens`. Texts are distributed as the target alone writes them, and at temperature 0
    are the same.
    """
    assert prompts, "nothing to go on from"
    assert all(prompts), "each prompt has a token to begin with"
    loop = _Loop(target, prompts, new_tokens, sampling, drafter, count, stop, seed)
    while any(loop.missing):
        loop.round()
    return Decoded(loop.texts, loop.accepted, loop.passes)


class _Loop:
    """The rows' texts so far, and for each the token that the target chose but has not computed."""

    def __init__(
        self,
        target: Target,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        sampling: Sampling,
        drafter: Callable[[int], Drafter] | None,
        count: int,
        stop: Stop,
        seed: int,
    ) -> None:
        self._session, self._sampling, self._count, self._stop = Session(target, len(prompts)), sampling, count, stop
        self._generator = torch.Generator(target.device).manual_seed(seed)
        self._drafter = drafter(len(prompts)) if drafter else None
        assert self._drafter is None or self._drafter.taps in ((), target.taps), "a draft reads what its target taps"
        self.texts: list[list[int]] = [[] for _ in prompts]
        self.accepted: list[list[int]] = [[] for _ in prompts]
        self.missing = [new_tokens] * len(prompts)
        """Tokens that each row may still get; 0 where it has ended."""
        self.passes = 1
        tokens_BT, valid_BT = _padded(prompts, target.device)
        features = self._session.read(tokens_BT, valid_BT)
        ends_B = valid_BT.sum(1) - 1
        last_BH = features.hidden_BTH[torch.arange(len(prompts), device=target.device), ends_B]
        self._chosen_B = drawn(probabilities(target.logits(last_BH), sampling), self._generator)
        if self._drafter:
            self._drafter.read(tokens_BT, valid_BT, features)
        for row, token in enumerate(self._chosen_B.tolist()):
            self._write(row, [token])

    def round(self) -> None:
        """Draft, ask the target about all of it in one pass, and write what stays."""
        proposal = self._proposal()
        block_BT = torch.cat((self._chosen_B[:, None], proposal.tokens_BK), 1)
        goes_on_B1 = self._missing_B[:, None] > 0
        valid_BT = torch.cat((goes_on_B1, valid_of(proposal) & goes_on_B1), 1)
        parents = None if proposal.parents_K is None else rooted(proposal.parents_K)
        logits_BTV, features = self._session.extend(block_BT, valid_BT, parents)
        self.passes += 1
        verdict = verify(proposal, logits_BTV, self._sampling, self._generator)
        kept_BT = torch.cat((goes_on_B1, verdict.accepted_BK & goes_on_B1), 1)
        self._session.keep(kept_BT)
        if self._drafter:
            self._drafter.read(*_settled(block_BT, kept_BT, features))
        self._chosen_B = verdict.chosen_B
        self._write_all(block_BT, kept_BT)

    @property
    def _missing_B(self) -> torch.Tensor:
        return torch.tensor(self.missing, device=self._chosen_B.device)

    def _proposal(self) -> Proposal:
        """What the drafter guesses, as far as it may still be written with the target's own token behind it."""
        count = min(self._count, max(self.missing) - 1)
        if self._drafter is None or count <= 0:
            return Proposal(self._chosen_B.new_empty((len(self.texts), 0)))
        proposal = self._drafter.propose(self._chosen_B, count, self._sampling, self._generator)
        parents, drafted = proposal.parents_K, proposal.tokens_BK.shape[1]
        depth_K = torch.tensor(range(drafted) if parents is None else depths(parents), device=self._chosen_B.device)
        fits_BK = depth_K < self._missing_B[:, None] - 1
        return proposal._replace(valid_BK=valid_of(proposal) & fits_BK)

    def _write_all(self, block_BT: torch.Tensor, kept_BT: torch.Tensor) -> None:
        """Accepted tokens and the target's own one, where rows have not ended."""
        rows = zip(block_BT.tolist(), kept_BT.tolist(), self._chosen_B.tolist(), strict=True)
        for row, (block, kept, chosen) in enumerate(rows):
            if self.missing[row]:
                drafted = [token for token, is_kept in zip(block[1:], kept[1:], strict=True) if is_kept]
                written = self._write(row, [*drafted, chosen])
                self.accepted[row].append(min(len(drafted), written))

    def _write(self, row: int, tokens: list[int]) -> int:
        """How many of the tokens came into the text, as far as it goes."""
        text, known = self.texts[row], len(self.texts[row])
        text += tokens[: self.missing[row]]
        length = self._stop.length(text, known)
        self.missing[row] = self.missing[row] - (len(text) - known) if length is None else 0
        del text[length if length is not None else len(text) :]
        return len(text) - known


def _padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts as tokens [B, T], filled up on the right, and which of them are real."""
    longest = max(map(len, prompts))
    tokens_BT = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=device)
    lengths_B = torch.tensor([len(prompt) for prompt in prompts], device=device)
    return tokens_BT, torch.arange(longest, device=device) < lengths_B[:, None]


def _settled(
    block_BT: torch.Tensor, kept_BT: torch.Tensor, features: Features
) -> tuple[torch.Tensor, torch.Tensor, Features]:
    """The tokens that stay of a block, moved to its front, with what the target computed at each: [B, W]."""
    lengths_B = kept_BT.sum(1)
    width = int(lengths_B.max())
    order_BW = kept_BT.int().argsort(dim=1, descending=True, stable=True)[:, :width]
    valid_BW = torch.arange(width, device=block_BT.device) < lengths_B[:, None]

    def moved(states_BTH: torch.Tensor) -> torch.Tensor:
        return states_BTH.gather(1, order_BW[..., None].expand(-1, -1, states_BTH.shape[-1]))

    found = Features(moved(features.hidden_BTH), tuple(moved(one) for one in features.tapped))
    return block_BT.gather(1, order_BW), valid_BW, found
