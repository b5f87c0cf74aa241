"""A student whose every exit is asked what the full depth is asked, through the same norm and head (LayerSkip, 4.2).

Shapes: B windows of T tokens, N rows that count, V vocabulary, H hidden size.
"""

from collections.abc import Sequence

import torch

from optcore.streaming.decoder import State
from optcore.techniques.losses import AnyLoss
from optcore.training.linear_loss import LossOfRows, chunked_linear_loss
from optcore.training.student import Student
from optcore.training.teacher import Teacher, kept_outputs
from optcore.training.trainee import Question, Trainee
from optcore.training.windows import Batch


def exit_weights(depths: Sequence[int], layers: int, scale: float) -> dict[int, float]:
    """Weights of losses after so many layers, which add up to 1; the full depth is added where it is not named.

    With l = depth - 1 they are in proportion to scale (0 + 1 + ... + l), and to L - 1 + scale (0 + ... + L - 2) at the
    full depth L (LayerSkip, equation 7).
    """
    weights = {depth: scale * depth * (depth - 1) / 2 for depth in depths if depth < layers}
    weights[layers] = (layers - 1) + scale * (layers - 1) * (layers - 2) / 2 or 1.0
    total = sum(weights.values())
    return {depth: weight / total for depth, weight in weights.items()}


def turn(exits: Sequence[int], rotation: int, step: int) -> list[int]:
    """The exits that a step trains: one in `rotation` (LayerSkip's rotational curriculum)."""
    return [depth for number, depth in enumerate(exits) if number % rotation == step % rotation]


class ExitTrainee(Trainee):
    """Trains exits and the full depth; the best parameters are those whose exits and full depth are best together."""

    def __init__(
        self,
        student: Student,
        losses: tuple[AnyLoss, ...],
        teacher: Teacher | None,
        seed: int,
        *,
        exits: Sequence[int],
        scale: float,
        rotation: int,
        steps: int,
    ) -> None:
        super().__init__(student, losses, teacher, seed)
        self._exits, self._scale, self._rotation, self._steps = exits, scale, rotation, steps

    @property
    def measures(self) -> tuple[str, ...]:
        """The full depth's, what training makes small, and where each exit agrees with the full depth."""
        return (*super().measures, "exit_loss", *(f"agreement_after_{depth}" for depth in self._exits))

    @property
    def measure(self) -> str:
        """The loss of all exits and the full depth."""
        return "exit_loss"

    def _loss(self, batch: Batch, windows: list[int], progress: float) -> torch.Tensor:
        asked = self._question(batch, windows)
        exits = turn(self._exits, self._rotation, round(progress * self._steps))
        weights = exit_weights(exits, len(self._decoder), self._scale)
        with kept_outputs(self._decoder.layers) as layers:
            full = self._row_losses(asked.inputs, asked.counts_BT, asked.labels_N, asked.said)
        total = weights.pop(len(self._decoder)) * full
        for depth, weight in weights.items():
            total = total + weight * self._at(layers[depth - 1], asked, self._losses_of(asked))
        return total

    @torch.no_grad()
    def _compared(self, batch: Batch, windows: list[int]) -> dict[str, torch.Tensor]:
        asked = self._question(batch, windows)
        with kept_outputs(self._decoder.layers) as layers:
            sums = self._sums(asked)
        likeliest_N = torch.empty_like(asked.labels_N)
        self._at(layers[-1], asked, lambda logits_nV, rows: _keep(likeliest_N, logits_nV, rows))
        for depth, weight in exit_weights(self._exits, len(self._decoder), self._scale).items():
            loss = self._at(layers[depth - 1], asked, self._losses_of(asked))
            sums["exit_loss"] += weight * loss
            if depth < len(self._decoder):
                same = self._at(layers[depth - 1], asked, lambda logits_nV, rows: _same(likeliest_N, logits_nV, rows))
                sums[f"agreement_after_{depth}"] += same
        return sums

    def _losses_of(self, asked: Question) -> LossOfRows:
        said = asked.said
        return lambda logits_nV, rows: self._rows(logits_nV, said.of(rows) if said else None, asked.labels_N[rows])

    def _at(self, hidden_BTH: torch.Tensor, asked: Question, of_rows: LossOfRows) -> torch.Tensor:
        """A sum over rows of the logits that the model would give if these were its last layer's outputs."""
        if self._head is None:
            logits_NV = self._decoder.logits(State(hidden_BTH, ()))[asked.counts_BT].float()
            return of_rows(logits_NV, slice(0, len(logits_NV))).sum()
        hidden_NH = self._decoder.before_head(hidden_BTH)[asked.counts_BT]
        linear, transform = self._head
        return chunked_linear_loss(hidden_NH, linear.weight, of_rows, bias_V=linear.bias, transform=transform)


def _keep(likeliest_N: torch.Tensor, logits_nV: torch.Tensor, rows: slice) -> torch.Tensor:
    likeliest_N[rows] = logits_nV.argmax(-1)
    return logits_nV.new_zeros(len(logits_nV))


def _same(likeliest_N: torch.Tensor, logits_nV: torch.Tensor, rows: slice) -> torch.Tensor:
    return (logits_nV.argmax(-1) == likeliest_N[rows]).to(logits_nV.dtype)
