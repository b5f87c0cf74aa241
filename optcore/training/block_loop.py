"""One decoder layer trained by itself: towards the dense layer's outputs, the best by validation kept.

Shapes: B windows of T tokens, H hidden size.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from optcore.frozen import Frozen
from optcore.training.batches import Order, micro_batches, micro_size
from optcore.training.schedule import learning_rate
from optcore.training.window_facts import WindowFacts

if TYPE_CHECKING:
    from optcore.techniques.training import Training

Errors = Callable[[list[int]], torch.Tensor]
"""Relative squared error of each token of some windows, [B, T], with a gradient to what trains."""

_TINY = 1e-12  # mean square of a state that is as good as zero


class BlockOutcome(Frozen):
    """How the training of a layer went; errors are means over tokens."""

    losses: tuple[tuple[int, float], ...] = ()
    """Step and loss."""
    measured: tuple[tuple[int, float], ...]
    """Step and error on the validation windows, the untrained start first."""
    best: int = 0
    """Step of the weights that were kept."""
    is_diverged: bool = False
    """Whether the loss stopped being a number."""

    @property
    def start(self) -> float:
        """The untrained layer's error on the validation windows."""
        return self.measured[0][1]

    @property
    def end(self) -> float:
        """That of the weights that were kept."""
        return dict(self.measured)[self.best]


class BlockLoop:
    """AdamW on a few parameters; `errors` calls the layer."""

    def __init__(
        self, settings: "Training", parameters: list[torch.nn.Parameter], errors: Errors, facts: WindowFacts, seed: int
    ) -> None:
        self._settings = settings
        self._parameters = parameters
        self._errors = errors
        self._facts = facts
        self._order = Order(facts.training, settings.batch, seed)
        self._micro = micro_size(settings.micro_batch, facts.length)

    def train(self, start: float) -> BlockOutcome:
        """Go through the steps; the parameters are the best ones afterwards. `start`: the untrained layer's error."""
        outcome = BlockOutcome(measured=((0, start),))
        if not self._parameters:
            return outcome
        settings, best = self._settings, self._copied()
        optimizer = torch.optim.AdamW(
            self._parameters, settings.learning_rate, settings.betas, weight_decay=settings.weight_decay
        )
        for step in range(settings.steps):
            loss = self._step(step, optimizer)
            if loss is None:
                outcome = outcome.model_copy(update={"is_diverged": True})
                break
            before = outcome.best
            outcome = self._looked(outcome, step + 1, loss)
            best = self._copied() if outcome.best != before else best
        with torch.no_grad():
            for parameter, value in zip(self._parameters, best, strict=True):
                parameter.copy_(value)
        return outcome

    def _step(self, step: int, optimizer: torch.optim.Optimizer) -> float | None:
        """The mean error of a step that was taken; None for one with a loss or a gradient that is no number."""
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, self._settings)
        windows, total = self._order.windows(step), 0.0
        for part in micro_batches(windows, self._micro):
            loss = self._errors(part).mean() * (len(part) / len(windows))
            loss.backward()
            total += float(loss.detach())
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, self._settings.clip))
        if not (math.isfinite(total) and math.isfinite(norm)):
            return None
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    def _looked(self, outcome: BlockOutcome, step: int, loss: float) -> BlockOutcome:
        """The outcome with a step noted, and measured where that is due."""
        losses, measured, best = (*outcome.losses, (step, loss)), outcome.measured, outcome.best
        if step == self._settings.steps or step % self._settings.validate_every == 0:
            found = self.validated()
            measured, best = (*measured, (step, found)), (step if found < outcome.end else best)
        return outcome.model_copy(update={"losses": losses, "measured": measured, "best": best})

    @torch.no_grad()
    def validated(self) -> float:
        """The mean error of the validation windows' tokens, of the layer as it is."""
        windows = list(range(self._facts.training, self._facts.windows))
        parts = micro_batches(windows, self._micro)
        return sum(float(self._errors(part).double().mean()) * len(part) for part in parts) / len(windows)

    def _copied(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self._parameters]


def relative_errors(found_BTH: torch.Tensor, target_BTH: torch.Tensor) -> torch.Tensor:
    """Squared error of each token over the mean square of its target, float32 [B, T].

    So tokens with massive activations do not drown the others, and layers can be told apart (see `hidden_loss`).
    """
    found, target = found_BTH.float(), target_BTH.float()
    return (found - target).square().mean(-1) / target.square().mean(-1).clamp(min=_TINY)
