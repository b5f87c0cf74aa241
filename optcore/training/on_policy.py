"""Windows that the student writes itself while it trains, to be judged on its own mistakes (arXiv:2306.13649).

What is written depends on the student's parameters, the seed and the step alone, so a run that was killed writes it
again.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from optcore.errors import RecipeError
from optcore.seeds import seed_of
from optcore.training.generate import continued
from optcore.training.windows import BEGINS, LEARNED, Batch

if TYPE_CHECKING:
    from optcore.techniques.distill import Distill
    from optcore.training.student import Student


class OnPolicy:
    """Rewrites a share of each batch. Raises `RecipeError` for a student that cannot write."""

    def __init__(self, student: "Student", technique: "Distill", seed: int, processes: int = 1) -> None:
        if not student.decoder.is_causal:
            raise _impossible("an encoder cannot write text")
        if processes > 1:
            raise _impossible("a student that is spread over several processes cannot write text")
        self.share = technique.on_policy
        self._model = student.model
        self._prompt = max(1, technique.data.prompt_tokens)
        self._temperature = technique.data.temperature
        self._seed = seed

    def own(self, chosen: Sequence[int]) -> frozenset[int]:
        """Numbers of the windows of a step that are rewritten: the first ones, already random; one at least."""
        return frozenset(chosen[: max(1, round(self.share * len(chosen)))])

    def marked(self, batch: Batch, windows: Sequence[int], own: frozenset[int]) -> Batch:
        """The batch with what is learned of it once it is rewritten: all behind the prompt."""
        flags_BT, is_own_B = batch.flags_BT.clone(), _is_own(windows, own)
        flags_BT[is_own_B] = LEARNED
        flags_BT[is_own_B, : self._begun(batch)] = 0
        flags_BT[is_own_B, 0] = BEGINS
        return Batch(batch.tokens_BT, flags_BT)

    def written(self, batch: Batch, windows: Sequence[int], own: frozenset[int], step: int) -> Batch:
        """The batch with its own windows rewritten."""
        is_own_B = _is_own(windows, own)
        if not is_own_B.any():
            return batch
        tokens_BT, was_training = batch.tokens_BT.clone(), self._model.training
        generator = torch.Generator(tokens_BT.device).manual_seed(seed_of(self._seed, step, windows[0]))
        prompts_BT = tokens_BT[is_own_B, : self._begun(batch)]
        self._model.eval()
        tokens_BT[is_own_B] = continued(self._model, prompts_BT, tokens_BT.shape[1], self._temperature, generator)
        self._model.train(was_training)
        return self.marked(Batch(tokens_BT, batch.flags_BT), windows, own)

    def _begun(self, batch: Batch) -> int:
        """Tokens of a prompt: something must be left to write."""
        return min(self._prompt, batch.tokens_BT.shape[1] - 1)


def _is_own(windows: Sequence[int], own: frozenset[int]) -> torch.Tensor:
    return torch.tensor([number in own for number in windows])


def _impossible(why: str) -> RecipeError:
    return RecipeError(f"on-policy distillation: {why}", remedy="leave out `on_policy`", field="/chain")
