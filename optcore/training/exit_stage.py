"""Training of early exits: a dense checkpoint in, one with the same tensors out, and windows that nobody has seen."""

from typing import TYPE_CHECKING

import torch

from optcore.errors import DataError
from optcore.restructure.risk_control import least_losses
from optcore.training.dense_writer import write_dense
from optcore.training.exit_trainee import ExitTrainee
from optcore.training.layer_dropout import drop_layers
from optcore.training.loop import Loop
from optcore.training.memory import check_memory
from optcore.training.ranks import Ranks
from optcore.training.report import note_training
from optcore.training.student import Student
from optcore.training.teacher import teacher_of
from optcore.training.windows import Windows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optcore.run import Run
    from optcore.techniques.early_exit import EarlyExit


def train_exits(run: "Run", technique: "EarlyExit", exits: "Sequence[int]") -> torch.Tensor:
    """Train the model of `run.checkpoint` at `exits` (layers computed) and write it to `run.out`.

    Returns token ids [S, T] that were neither trained nor validated on.
    """
    windows, unseen_ST = _kept_apart(run, technique)
    ranks = Ranks(technique.batch)
    asked = None if run.answers else run.teacher or run.checkpoint
    check_memory(technique, run.checkpoint, asked, ranks)
    student = Student(run.checkpoint, ranks.device)
    student.model.requires_grad_()
    if technique.gradient_checkpointing:
        student.recompute_layers()
    drop_layers(student.layers, technique.dropout)
    trainee = ExitTrainee(
        student,
        technique.losses,
        teacher_of(run, technique, ranks),
        run.seed,
        exits=exits,
        scale=technique.exit_scale,
        rotation=technique.rotation,
        steps=technique.steps,
    )
    loop = Loop(run, technique, trainee, windows, ranks)
    loop.start()
    state = loop.train()
    write_dense(run, student, ranks)
    note_training(run, technique, state, windows.facts)
    return unseen_ST


def _kept_apart(run: "Run", technique: "EarlyExit") -> tuple[Windows, torch.Tensor]:
    """The windows to train and validate on, and behind them the tokens [S, T] of those to find the threshold on."""
    windows = Windows(run.windows)
    facts = windows.facts
    count = facts.validation * technique.samples // technique.held_out  # little text is shared out alike
    least = least_losses(technique.risk, technique.delta) if technique.risk and technique.threshold is None else 1
    if count < least:
        raise DataError(
            f"{count} windows of the text are left to find the threshold on, and a risk of {technique.risk:g} takes at "
            f"least {least}",
            remedy="use more text or more `samples`, allow more `risk` or `delta`, or name the `threshold`",
            field="/chain",
        )
    left = {"windows": facts.windows - count, "validation": facts.validation - count}
    windows.facts = facts.model_copy(update=left)
    return windows, windows.read(range(facts.windows - count, facts.windows)).tokens_BT
