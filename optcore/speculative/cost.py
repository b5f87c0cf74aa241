"""What drafting costs on this machine, and what it really buys there: passes timed apart, and decoding as a whole.

Shapes: B sequences, P tokens of a prompt.
"""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from transformers import DynamicCache

from optcore.frozen import Frozen
from optcore.speculative.decode import Decoded, generate
from optcore.speculative.drafter import Drafter
from optcore.speculative.sampling import GREEDY, Sampling
from optcore.speculative.stopping import Stop
from optcore.speculative.target import Features, Target

MakeDrafter = Callable[[int], Drafter]
"""Begins to draft for so many sequences."""
_REPEATS = 9
_WALL_repeats = 3


class Cost(Frozen):
    """Medians of timed passes, in seconds, all with the prompt's keys and values in the cache."""

    batch: int
    target: float
    """The target's pass over one token of each sequence."""
    verification: float
    """The target's pass over one token and all drafted ones: on a CPU not the price of one."""
    draft: float
    """A whole proposal, with what the drafter reads before it."""

    @property
    def ratio(self) -> float:
        """A proposal over a pass of the target: K c of a draft that guesses token by token, c of one that guesses all
        at once."""
        return self.draft / self.target

    def ideal(self, tau: float) -> float:
        """The speed-up where a verification costs what a pass does: tau / (1 + K c), tau / (1 + c)."""
        return tau / (1 + self.ratio)

    def predicted(self, tau: float) -> float:
        """The speed-up by what this machine takes for each part."""
        return tau * self.target / (self.verification + self.draft)


class Wall(Frozen):
    """Decoding as a whole, plain and with a draft by turns; the quickest of each, in seconds a written token: sampled
    texts end after different numbers of them."""

    batch: int
    sampling: Sampling
    plain: float
    drafted: float
    tau: float
    """Tokens a round of what was decoded here."""

    @property
    def speedup(self) -> float:
        """Below 1 the draft slows this machine down."""
        return self.plain / self.drafted


@torch.no_grad()
def measure_cost(target: Target, drafter: Drafter, prompts_BP: torch.Tensor, count: int, read: int) -> Cost:
    """Time a pass of the target, a verification and a proposal by turns, after a warm-up.

    `read` are the tokens that the drafter reads in a round: about tau. What is timed stays in the cache, and adds a few
    tokens to the prompt.
    """
    prompts_BP = prompts_BP.to(target.device)
    features = target.look({"input_ids": prompts_BP})
    drafter.read(prompts_BP, torch.ones_like(prompts_BP, dtype=torch.bool), features)
    cache: Any = DynamicCache(config=target.model.config)
    target.model.base_model(input_ids=prompts_BP, past_key_values=cache, use_cache=True)
    wide_BK = prompts_BP[:, :1].expand(-1, count + 1)
    few_BR = prompts_BP[:, -read:]
    of_few = Features(features.hidden_BTH[:, -read:], tuple(one[:, -read:] for one in features.tapped))

    def run(step_BT: torch.Tensor) -> None:
        target.logits(target.model.base_model(input_ids=step_BT, past_key_values=cache, use_cache=True)[0])

    def guess() -> None:
        drafter.read(few_BR, torch.ones_like(few_BR, dtype=torch.bool), of_few)
        drafter.propose(few_BR[:, -1], count, GREEDY, None)

    timed = [lambda: run(wide_BK[:, :1]), lambda: run(wide_BK), guess]
    seconds = [[_seconds(work, target.device) for work in timed] for _ in range(_REPEATS + 1)][1:]
    one, several, proposal = (median(times) for times in zip(*seconds, strict=True))
    return Cost(batch=len(prompts_BP), target=one, verification=several, draft=proposal)


def measure_wall(
    target: Target,
    prompts: Sequence[Sequence[int]],
    drafter: MakeDrafter,
    *,
    new_tokens: int,
    count: int,
    sampling: Sampling,
    ends: frozenset[int] = frozenset(),
    seed: int = 0,
) -> Wall | None:
    """Decode plainly and with the draft, by turns, so that whatever else the machine does meets both.

    Texts end with one of `ends`: behind it a model says what nobody asks for, often in circles, which are easily
    guessed. None where all end at once, so that nothing is drafted.
    """
    decoded: dict[bool, Decoded] = {}
    times: dict[bool, list[float]] = {False: [], True: []}

    def decode(with_draft: bool, tokens: int) -> None:
        decoded[with_draft] = generate(
            target,
            prompts,
            new_tokens=tokens,
            sampling=sampling,
            drafter=drafter if with_draft else None,
            count=count,
            stop=Stop(ends),
            seed=seed,
        )

    for with_draft in times:  # a warm-up
        decode(with_draft, min(new_tokens, count + 2))
    if not any(decoded[True].accepted):
        return None
    for _ in range(_WALL_repeats):
        for with_draft, found in times.items():
            seconds = _seconds(lambda asked=with_draft: decode(asked, new_tokens), target.device)  # type: ignore[misc]
            found.append(seconds / sum(map(len, decoded[with_draft].tokens)))
    return Wall(
        batch=len(prompts),
        sampling=sampling,
        plain=min(times[False]),
        drafted=min(times[True]),
        tau=real_tau(decoded[True]),
    )


def real_tau(decoded: Decoded) -> float:
    """Tokens a round of what was really decoded; the first token of each row is the prompt's pass's."""
    return sum(len(row) - 1 for row in decoded.tokens) / sum(map(len, decoded.accepted))


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
