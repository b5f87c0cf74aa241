"""A model with exits: trained, with a threshold whose risk was tested, and a document that says how tokens leave.

Legend: S windows, T tokens.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from optcore.calibration.propagate import calibration_windows
from optcore.conditional import Conditional, Exits, load_conditional
from optcore.errors import RecipeError
from optcore.links import link_checkpoint
from optcore.restructure.exit_walk import Walk, said_at, walk
from optcore.restructure.risk_control import last_safe, least_losses
from optcore.restructure.speculation import best_draft
from optcore.streaming.decoder import Decoder
from optcore.streaming.exits import NEVER
from optcore.training.exit_stage import train_exits

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.early_exit import EarlyExit

THRESHOLDS = (0.999, 0.995, *(share / 100 for share in (99, 98, 97, 96, 95, 94, 92, *range(90, -1, -5))))
"""In the order in which they are tested: chosen before any text is seen, the safest first."""
ACCELERATED_BY = (
    "Hugging Face transformers: assistant_early_exit for self-speculative decoding; none for confidence exits"
)


def add_exits(run: "Run", technique: "EarlyExit") -> None:
    """Write the model of `run.checkpoint` to `run.out`, its exits trained, with the threshold at which tokens leave."""
    decoder = Decoder(run.checkpoint)
    exits = _exits(decoder, technique)
    if technique.steps:
        tokens_ST = train_exits(run, technique, exits)
        decoder = Decoder(run.out)
    else:
        link_checkpoint(run.checkpoint, run.out)
        tokens_ST = calibration_windows(run, decoder)[: technique.samples]
    _Search(run, technique, decoder, exits, tokens_ST).settle()


class _Search:
    """Looks for the threshold, and keeps what the chosen one does."""

    def __init__(
        self, run: "Run", technique: "EarlyExit", decoder: Decoder, exits: Sequence[int], tokens_ST: torch.Tensor
    ) -> None:
        self._run, self._technique, self._decoder, self._exits = run, technique, decoder, tuple(exits)
        self._tokens_ST = tokens_ST
        self._said = said_at(run, decoder, tokens_ST)
        self._tried: list[tuple[float, float]] = []
        """Thresholds and their risks."""

    def settle(self) -> None:
        """Choose how tokens leave; write that beside the weights and note what it does."""
        asked = self._technique
        exits, threshold = self._at_one_depth() if asked.policy == "fixed" else (self._exits, self._threshold())
        walked = self._walked(exits, threshold)
        mean = walked.computed_ST.double().mean().item()
        found = Exits(layers=exits, threshold=threshold, risk=asked.risk, delta=asked.delta, mean_layers=mean)
        Conditional(early_exit=found, accelerated_by=ACCELERATED_BY).save(self._run.out)
        self._note(found, walked)

    def _at_one_depth(self) -> tuple[tuple[int, ...], float]:
        """The exit and the threshold with which all tokens are in as many layers as by confidence, or up to one more,
        but never in all: as the checkpoint says where it has exits already."""
        known = load_conditional(self._run.checkpoint)
        if known and known.early_exit:
            mean = known.early_exit.mean_layers
        else:
            mean = self._walked(self._exits, self._threshold()).computed_ST.double().mean().item()
        return (min(math.ceil(mean), len(self._decoder) - 1),), 0.0

    def _threshold(self) -> float:
        asked, windows = self._technique, len(self._tokens_ST)
        if asked.threshold is not None:
            return asked.threshold
        if not asked.risk:
            return NEVER
        if windows < (least := least_losses(asked.risk, asked.delta)):
            self._run.notice(
                f"no token leaves early: a risk of {asked.risk:g} cannot be tested on {windows} windows of text, "
                f"it takes at least {least}; use more text, a higher `risk` or a higher `delta`"
            )
            return NEVER
        found = last_safe(THRESHOLDS, self._losses, asked.risk, asked.delta)
        return NEVER if found is None else found

    def _losses(self, threshold: float) -> list[float]:
        """Each window's share of tokens with another prediction: tokens of one window are not independent."""
        differs_ST = self._walked(self._exits, threshold).likeliest_ST != self._said[-1]
        self._tried.append((threshold, differs_ST.double().mean().item()))
        return differs_ST.double().mean(1).tolist()

    def _walked(self, exits: Sequence[int], threshold: float) -> Walk:
        return walk(self._run, self._decoder, self._tokens_ST, exits, threshold)

    def _note(self, found: Exits, walked: Walk) -> None:
        layers, tokens, mean = len(self._decoder), walked.computed_ST.numel(), found.mean_layers
        agreement = (walked.likeliest_ST == self._said[-1]).double().mean().item()
        accepted = {depth: (self._said[depth - 1] == self._said[-1]).double().mean().item() for depth in self._exits}
        checks = sum(int((walked.computed_ST >= depth).sum()) for depth in found.layers) / tokens
        self._run.results["early_exit"] = {
            **found.model_dump(mode="json"),
            "share_after": {
                str(depth): int((walked.computed_ST == depth).sum()) / tokens for depth in (*found.layers, layers)
            },
            "saved": 1 - mean / layers,
            "head_checks": checks if 0 < found.threshold <= 1 else 0.0,
            "agreement": agreement,
            "tokens": tokens,
            "tested": self._tried,
            "acceptance": {str(depth): share for depth, share in accepted.items()},
            "draft": best_draft(accepted, layers)._asdict(),
            "accelerated_by": ACCELERATED_BY,
        }
        self._run.notice(
            f"tokens leave after {mean:.2f} of {layers} layers in the mean ({1 - mean / layers:.1%} of their work "
            f"saved) and {agreement:.2%} of them say what the full depth says; accelerated by: {ACCELERATED_BY}"
        )


def _exits(decoder: Decoder, technique: "EarlyExit") -> Sequence[int]:
    """After how many layers tokens may leave. Raises `RecipeError` for a model of another kind, or of fewer layers."""
    layers = len(decoder)
    if not decoder.is_causal or layers < 2:
        raise RecipeError(
            f"tokens leave a causal language model of several layers, and {type(decoder.model).__name__} is none",
            remedy="leave `early_exit` out",
            field="/chain",
        )
    exits = technique.exits or range(1, layers)
    if exits[-1] >= layers:
        raise RecipeError(
            f"no token can leave early after {exits[-1]} of {layers} layers",
            remedy=f"name exits of at most {layers - 1}",
            field="/chain",
        )
    return exits
