"""Answers to prompts of different lengths, written together.

Prompts are padded on the left, so that all answers go on in one column. Every row has draws of its own, one a token:
what is written depends on the row's own seed, and on other rows by no more than how a device rounds sums in batches.

Shapes: B rows, T tokens so far, V vocabulary.
"""

from collections.abc import Sequence
from inspect import signature
from typing import Any, NamedTuple

import torch

from optcore.training.generate import last_only, new_cache


class Question(NamedTuple):
    """What one row is asked."""

    prompt: list[int]
    limit: int
    """Most tokens of the answer."""
    temperature: float
    """0 takes the likeliest token."""
    generator: torch.Generator
    """Of the CPU; `limit` numbers are taken from it, whatever the answer's length."""


@torch.no_grad()
def answered(model: Any, questions: Sequence[Question], ends: frozenset[int]) -> list[list[int]]:
    """What a causal model answers; each answer ends with one of `ends`, which it includes, or at its limit."""
    writing = _Writing(model, [question.prompt for question in questions])
    device, rows, answers = writing.mask_BT.device, list(range(len(questions))), [list[int]() for _ in questions]
    temperatures_B = torch.tensor([question.temperature for question in questions], device=device)
    uniforms_TB = _uniforms(questions).to(device)
    logits_BV = writing.begun()
    for uniforms_B in uniforms_TB:
        tokens_B = _drawn(logits_BV, temperatures_B[rows], uniforms_B[rows])
        going = []
        for place, (row, token) in enumerate(zip(rows, tokens_B.tolist(), strict=True)):
            if not _is_over(answers[row], questions[row], ends):
                answers[row].append(token)
                going += [] if _is_over(answers[row], questions[row], ends) else [place]
        if not going:
            break
        if 2 * len(going) <= len(rows):  # rows that have ended cost as much as others
            rows, tokens_B = [rows[place] for place in going], tokens_B[going]
            writing.keep(torch.tensor(going, device=device))
        logits_BV = writing.after(tokens_B)
    return answers


class _Writing:
    """A model in the middle of B texts: its cache, and which places of it hold text."""

    def __init__(self, model: Any, prompts: Sequence[list[int]]) -> None:
        self._model = model
        self._cache = new_cache(model)
        self._known = signature(model.forward).parameters
        device, longest = model.get_input_embeddings().weight.device, max(map(len, prompts))
        padded = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
        lengths_B = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self.mask_BT = (torch.arange(longest, 0, -1, device=device) <= lengths_B[:, None]).long()
        self._prompts_BT = torch.tensor(padded, device=device)

    def begun(self) -> torch.Tensor:
        """Logits [B, V] behind the prompts."""
        return self._logits(self._prompts_BT)

    def after(self, tokens_B: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] behind one more token of each."""
        self.mask_BT = torch.nn.functional.pad(self.mask_BT, (0, 1), value=1)
        return self._logits(tokens_B[:, None])

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with some of the rows."""
        self.mask_BT = self.mask_BT[rows]
        self._cache.reorder_cache(rows)  # of all kinds of layers: `batch_select_indices` knows of attention alone

    def _logits(self, step_BT: torch.Tensor) -> torch.Tensor:
        positions_BT = (self.mask_BT.cumsum(1) - 1).clamp(min=0)[:, -step_BT.shape[1] :]
        named = {"attention_mask": self.mask_BT, "position_ids": positions_BT}
        given = {name: value for name, value in named.items() if name in self._known}
        out = self._model(
            input_ids=step_BT, past_key_values=self._cache, use_cache=True, **given, **last_only(self._model)
        )
        logits_BV: torch.Tensor = out.logits[:, -1].float()
        return logits_BV


def _uniforms(questions: Sequence[Question]) -> torch.Tensor:
    """Numbers [T, B] of [0, 1) in float64, a column a row."""
    drawn = [torch.rand(one.limit, dtype=torch.float64, generator=one.generator) for one in questions]
    return torch.nn.utils.rnn.pad_sequence(drawn)


def _drawn(logits_BV: torch.Tensor, temperatures_B: torch.Tensor, uniforms_B: torch.Tensor) -> torch.Tensor:
    """The first token up to which more mass lies than the uniform number; the likeliest one at a temperature of 0."""
    divisors_B1 = torch.where(temperatures_B > 0, temperatures_B, 1)[:, None]
    mass_BV = (logits_BV / divisors_B1).softmax(-1).double().cumsum(-1)
    wanted_B1 = uniforms_B[:, None] * mass_BV[:, -1:]
    drawn_B = torch.searchsorted(mass_BV, wanted_B1, right=True).squeeze(1).clamp(max=logits_BV.shape[1] - 1)
    return torch.where(temperatures_B > 0, drawn_B, logits_BV.argmax(-1))


def _is_over(answer: list[int], question: Question, ends: frozenset[int]) -> bool:
    return len(answer) >= question.limit or (bool(answer) and answer[-1] in ends)
