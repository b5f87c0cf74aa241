"""How well a draft guesses its target, without a serving engine.

Greedy decoding and sampling stand side by side always, since greedy text may go round in circles and flatter a draft.

Shapes: S prompts of P tokens.
"""

import math
from collections.abc import Iterable

import torch

from optcore.acceptance_length import AcceptanceLength
from optcore.draft_made import Asked, Made
from optcore.drafts.draft import Draft
from optcore.errors import DataError
from optcore.frozen import Frozen, digest_of
from optcore.speculative.cost import Cost, MakeDrafter, Wall
from optcore.speculative.estimate import conditional, survival
from optcore.speculative.interval import ratio_interval
from optcore.speculative.own_text import OwnText, write_text
from optcore.speculative.repetition import loops
from optcore.speculative.sampling import GREEDY, Sampling
from optcore.speculative.target import Target
from optcore.speculative.teacher_forced import followed, teacher_forced
from optcore.speculative.walk import Chains


class Accepted(AcceptanceLength):
    """The whole of what there is to say of a length."""

    survival: tuple[float, ...]
    """Share of rounds in which at least 1, 2, ... drafted tokens are accepted."""
    conditional: tuple[float | None, ...]
    """Share in which the 1st, 2nd, ... is accepted where all before it were; None where none came so far."""
    tau_without_loops: float | None
    """Tau on the texts that do not go round in circles; None where all do."""

    @property
    def length(self) -> AcceptanceLength:
        """It alone."""
        return AcceptanceLength(tau=self.tau, interval=self.interval)


class AcceptedAt(Frozen):
    """On texts that the target drew in one way."""

    sampling: Sampling
    prompts: int
    tokens: int
    """Tokens of the texts that were guessed at."""
    looping: float
    """Share of texts that go round in circles."""
    draft: Accepted | None
    ngram: Accepted
    """By looking up what followed the same words before: what costs nothing."""

    @property
    def own(self) -> Accepted:
        """The draft's, or the n-grams' where there is no draft."""
        return self.draft or self.ngram


class AcceptanceFacts(Frozen):
    """How well a draft does."""

    asked: Asked
    greedy: AcceptedAt
    sampled: AcceptedAt
    covered: float = 1.0
    """Probability that the target, when sampled, gives to tokens which the draft can say."""
    costs: tuple[Cost, ...] = ()
    """A batch size each."""
    walls: tuple[Wall, ...] = ()

    @property
    def count(self) -> int:
        """Tokens drafted a round (K), in a chain."""
        return self.asked.count

    @property
    def made(self) -> Made | None:
        """To compare other models with; None of n-grams alone, which no change of the model makes worse by itself."""
        greedy, sampled = self.greedy.draft, self.sampled.draft
        return Made(asked=self.asked, greedy=greedy.length, sampled=sampled.length) if greedy and sampled else None


def measure_acceptance(
    target: Target,
    draft: Draft | None,
    ngram: MakeDrafter,
    prompts_SP: torch.Tensor,
    *,
    count: int,
    new_tokens: int,
    sampled: Sampling,
    ends: frozenset[int] = frozenset(),
    seed: int = 0,
) -> AcceptanceFacts:
    """Let the target go on from prompts, greedily and `sampled`, and see what a chain of `count` tokens would have
    guessed of it. `ends` are the tokens that end a text. Raises `DataError` where the target has nothing to say."""
    found = {}
    covered = 1.0
    for sampling in (GREEDY, sampled):
        text = _telling(write_text(target, prompts_SP, new_tokens, sampling, ends, seed))
        guessed = teacher_forced(target, draft, text, count, sampling) if draft else None
        covered = guessed.covered if guessed else 1.0  # of the sampled text, which comes last
        found[sampling] = _accepted_at(sampling, text, guessed.chains if guessed else None, ngram, count, seed)
    texts, begin = prompts_SP.shape
    asked = Asked(
        count=count,
        prompts=texts,
        prompt_tokens=begin,
        new_tokens=new_tokens,
        text=digest_of(prompts_SP.tolist()),
        seed=seed,
        **sampled.model_dump(),
    )
    return AcceptanceFacts(asked=asked, greedy=found[GREEDY], sampled=found[sampled], covered=covered)


def _telling(text: OwnText) -> OwnText:
    """The texts with more than one token: only those have a round."""
    rows = (text.starts_S > 0).nonzero()[:, 0]
    if not len(rows):
        raise DataError(
            "the model ends every text at once, so there is nothing to guess",
            remedy="use longer prompts, or leave `acceptance` out of `evaluate`",
            field="/evaluate",
        )
    return OwnText(text.tokens_ST[rows], text.prompt, text.lengths_S[rows])


def _accepted_at(
    sampling: Sampling, text: OwnText, chains: Chains | None, ngram: MakeDrafter, count: int, seed: int
) -> AcceptedAt:
    is_loop_S = torch.tensor([loops(row) for row in text.written()])
    return AcceptedAt(
        sampling=sampling,
        prompts=len(text.tokens_ST),
        tokens=int(text.starts_S.sum()),
        looping=float(is_loop_S.double().mean()),
        draft=_accepted(chains, is_loop_S, seed) if chains else None,
        ngram=_accepted(followed(ngram(len(text.tokens_ST)), text, count), is_loop_S, seed),
    )


def _accepted(chains: Chains, is_loop_S: torch.Tensor, seed: int) -> Accepted:
    rest = (~is_loop_S).nonzero()[:, 0]
    return Accepted(
        tau=chains.tau,
        interval=ratio_interval(chains.starts_S, chains.rounds_S, seed),
        survival=tuple(value for value in survival(chains).tolist() if not math.isnan(value)),
        conditional=_known(conditional(chains).tolist()),
        tau_without_loops=chains.only(rest).tau if len(rest) else None,
    )


def _known(values: Iterable[float]) -> tuple[float | None, ...]:
    return tuple(None if math.isnan(value) else value for value in values)
