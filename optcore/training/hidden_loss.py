"""Hidden states of a student against those of its teacher, layer by layer.

Shapes: B sequences, T positions, H the student's width, G the teacher's, N tokens with a weight. Lists of hidden
states hold one [B, T, width] for each layer, taken after it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from optcore.errors import RecipeError
from optcore.techniques.losses import HiddenMse
from optcore.training.divergences import wide

GROWTH_share = 0.5  # of training, over which `progressive` adds pairs
_TINY = 1e-12  # mean square of a state that is as good as zero


class Stack(NamedTuple):
    """A model's decoder layers, as far as their states matter."""

    layers: int
    width: int


class Pair(NamedTuple):
    """Layers whose states are compared, counted from 0."""

    teacher: int
    student: int


class HiddenLoss(nn.Module):
    """Relative squared difference of mapped hidden states, with a learned map between widths that differ.

    There is one map, without a bias, for all pairs: the residual stream is one space (as in arXiv:1909.10351). It is
    created from the seed, trained with the student and belongs to this module, so it goes when training is over.
    """

    def __init__(self, term: HiddenMse, student: Stack, teacher: Stack, seed: int) -> None:
        """Raises `RecipeError` for a pair of layers that are not there."""
        super().__init__()
        self.progressive = term.progressive
        self.pairs = layer_pairs(term, student.layers, teacher.layers)
        """From the lowest up."""
        self.projection_GH = None if student.width == teacher.width else _projection(student.width, teacher.width, seed)
        """float32, a parameter; None where states have the same width."""

    def forward(
        self,
        student_BTH: Sequence[torch.Tensor],
        teacher_BTG: Sequence[torch.Tensor],
        weights_BT: torch.Tensor,
        progress: float = 1.0,
    ) -> torch.Tensor:
        """Sum over tokens, each times its weight, of the mean over mapped layers: a float32 scalar, the term's apart.

        Each token's mean squared difference is divided by the mean square of the teacher's state of that token. So
        layers weigh alike although the residual stream grows with depth, tokens with massive activations do not drown
        the others, and the sum does not depend on how a batch is split. Tokens of weight 0 are never looked at.
        `progress` is the share of training that is over, 0 to 1.
        """
        counted_BT = weights_BT.bool()
        weights_N = weights_BT[counted_BT]
        pairs = self.pairs[: self.mapped(progress)]
        losses = [
            self._relative_error(student_BTH[pair.student][counted_BT], teacher_BTG[pair.teacher][counted_BT])
            for pair in pairs
        ]
        return (weights_N * torch.stack(losses).mean(0)).sum()

    def mapped(self, progress: float) -> int:
        """How many of the pairs count by now.

        `progressive` goes from one pair to all, linearly over the first half of training, lowest first: what a layer is
        given is made by those below it, so until they agree with the teacher a deeper target asks it to make up for
        their errors, and what it learns doing so is in the way later.
        """
        if not self.progressive:
            return len(self.pairs)
        return 1 + int((len(self.pairs) - 1) * min(1.0, progress / GROWTH_share))

    def _relative_error(self, student_NH: torch.Tensor, teacher_NG: torch.Tensor) -> torch.Tensor:
        target_NG, own_NH = wide(teacher_NG).detach(), wide(student_NH)
        own_NG = own_NH if self.projection_GH is None else nn.functional.linear(own_NH, self.projection_GH)
        error_N = (wide(own_NG) - target_NG).square().mean(-1)
        return error_N / target_NG.square().mean(-1).clamp(min=_TINY)


def layer_pairs(term: HiddenMse, student_layers: int, teacher_layers: int) -> tuple[Pair, ...]:
    """The layers to compare, from the student's lowest up. Raises `RecipeError` for layers that are not there."""
    if term.layers == "all":
        return tuple(Pair(_spread(index, student_layers, teacher_layers), index) for index in range(student_layers))
    pairs = [Pair(*pair) for pair in term.layers]
    for pair in pairs:
        if pair.teacher >= teacher_layers or pair.student >= student_layers:
            raise RecipeError(
                f"hidden_mse compares layer {pair.teacher} of the teacher with layer {pair.student} of the student, "
                f"which have {teacher_layers} and {student_layers} layers",
                remedy="count layers from 0 and name pairs (teacher layer, student layer)",
            )
    return tuple(sorted(pairs, key=lambda pair: (pair.student, pair.teacher)))


def _spread(index: int, student_layers: int, teacher_layers: int) -> int:
    """Where the same share of the teacher's layers is done, rounded up: the last belongs to the last."""
    return -(-(index + 1) * teacher_layers // student_layers) - 1


def _projection(student_width: int, teacher_width: int, seed: int) -> nn.Parameter:
    """Normal with variance 1 / H, so that the mean square of states is kept; the same on every device and rank."""
    drawn_GH = torch.randn(teacher_width, student_width, generator=torch.Generator().manual_seed(seed), device="cpu")
    return nn.Parameter(drawn_GH * student_width**-0.5)
