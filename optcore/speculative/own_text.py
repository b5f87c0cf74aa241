"""Text that the target itself goes on with, behind prompts: what acceptance is measured on.

Shapes: S texts of T tokens, P of a prompt, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache

from optcore.speculative.sampling import Sampling, probabilities
from optcore.speculative.target import Target

ROWS = 32
"""Texts that are in a pass together."""


class OwnText(NamedTuple):
    """Prompts of one length, and what the target went on with."""

    tokens_ST: torch.Tensor
    prompt: int
    """P."""
    lengths_S: torch.Tensor
    """Tokens behind the prompt that count: up to the first that ends a text, which counts too."""

    @property
    def starts_S(self) -> torch.Tensor:
        """Tokens that a round can start at: all that count but the last."""
        return self.lengths_S - 1

    def written(self) -> list[list[int]]:
        """What counts behind each prompt."""
        rows = zip(self.tokens_ST[:, self.prompt :].tolist(), self.lengths_S.tolist(), strict=True)
        return [row[:length] for row, length in rows]

    def batches(self, rows: int) -> Iterator["OwnText"]:
        """A few texts at a time."""
        for tokens, lengths in zip(self.tokens_ST.split(rows), self.lengths_S.split(rows), strict=True):
            yield OwnText(tokens, self.prompt, lengths)


@torch.no_grad()
def write_text(
    target: Target, prompts_SP: torch.Tensor, new_tokens: int, sampling: Sampling, ends: frozenset[int], seed: int = 0
) -> OwnText:
    """Go on from prompts by so many tokens, one a pass; `ends` are the tokens that end a text."""
    generator = torch.Generator(target.device).manual_seed(seed)
    written = [_continued(target, part, new_tokens, sampling, ends, generator) for part in prompts_SP.split(ROWS)]
    tokens_ST = torch.cat(written)
    is_end_SL = torch.isin(tokens_ST[:, prompts_SP.shape[1] :], torch.tensor(sorted(ends), dtype=torch.long))
    first_S = torch.where(is_end_SL.any(1), is_end_SL.int().argmax(1) + 1, new_tokens)
    return OwnText(tokens_ST, prompts_SP.shape[1], first_S)


def _continued(
    target: Target,
    prompts_BP: torch.Tensor,
    new_tokens: int,
    sampling: Sampling,
    ends: frozenset[int],
    generator: torch.Generator,
) -> torch.Tensor:
    """[B, P + new_tokens] on the CPU; what follows where all texts have ended is filler."""
    cache: Any = DynamicCache(config=target.model.config)
    step = prompts_BP.to(target.device)
    drawn: list[torch.Tensor] = []
    has_ended_B = torch.zeros(len(step), dtype=torch.bool)
    while len(drawn) < new_tokens and not has_ended_B.all():
        hidden_BTH = target.model.base_model(input_ids=step, past_key_values=cache, use_cache=True)[0]
        next_BV = probabilities(target.logits(hidden_BTH[:, -1]), sampling)
        step = torch.multinomial(next_BV, 1, generator=generator)
        drawn.append(step.cpu())
        has_ended_B |= torch.tensor([token in ends for token in step.flatten().tolist()])
    missing = new_tokens - len(drawn)
    return torch.cat((prompts_BP, *drawn, *[torch.zeros_like(prompts_BP[:, :1])] * missing), 1)
