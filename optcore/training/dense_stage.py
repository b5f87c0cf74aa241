"""Fine-tuning and distillation: a dense checkpoint in, one with the same tensors out."""

from pathlib import Path
from typing import TYPE_CHECKING

from optcore.errors import RecipeError
from optcore.factored import load_factored
from optcore.sparsity import load_sparsity
from optcore.streaming.shares import shares_of
from optcore.techniques.losses import CrossEntropy
from optcore.training.adapters import add_adapters, keep_zeros
from optcore.training.classifier import with_classifier
from optcore.training.constraints import constraints_of, held_bytes
from optcore.training.dense_writer import write_dense
from optcore.training.factors import train_factors, write_factors
from optcore.training.loop import Loop
from optcore.training.memory import check_memory
from optcore.training.on_policy import OnPolicy
from optcore.training.quantized_base import hold_in_nf4
from optcore.training.rank_budget import RankBudget, budget_of
from optcore.training.ranks import Ranks
from optcore.training.report import note_adapters, note_training
from optcore.training.student import Student, small_parameters
from optcore.training.teacher import teacher_of
from optcore.training.trainee import Trainee
from optcore.training.windows import Windows

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.distill import Distill
    from optcore.techniques.finetune import Finetune
    from optcore.techniques.heal import Heal


def train_dense(run: "Run", technique: "Distill | Finetune | Heal") -> None:
    """Train the model of `run.checkpoint` and write it to `run.out`."""
    ranks = Ranks(technique.batch)
    student, made = _student(run, technique, ranks)
    budget = _choose(run, technique, student, ranks, made)
    if technique.gradient_checkpointing:
        student.recompute_layers()
    losses = (CrossEntropy(),) if technique.technique == "finetune" else technique.losses
    trainee = Trainee(student, losses, teacher_of(run, technique, ranks), run.seed)
    ranks.shard(trainee, list(student.layers))
    windows = Windows(run.windows)
    on_policy, constraints = _on_policy(run, technique, student, ranks), constraints_of(student, run.checkpoint, ranks)
    loop = Loop(run, technique, trainee, windows, ranks, budget, on_policy, constraints)
    loop.start()
    state = loop.train()
    write_dense(run, student, ranks)
    write_factors(run, student, ranks)
    note_training(run, technique, state, windows.facts)
    if technique.scope == "lora":
        note_adapters(run, student, budget)
    ranks.leave()


def _student(run: "Run", technique: "Distill | Finetune | Heal", ranks: Ranks) -> tuple[Student, frozenset[str]]:
    """The student, and which of its parameters no checkpoint has trained."""
    is_held = technique.scope == "lora" and technique.lora.base == "nf4"
    asked = technique.technique != "finetune" and not run.answers
    check_memory(
        technique,
        run.checkpoint,
        (run.teacher or run.checkpoint) if asked else None,
        ranks,
        forms=held_bytes(run.checkpoint, ranks.count) if technique.scope == "full" else 0.0,
    )
    begun = with_classifier(run, technique.data, ranks)
    if begun.folder != run.checkpoint and _has_form(run.checkpoint):
        raise RecipeError(
            "a head for labels is put on the model, whose tensors get other names: what it was made into would be lost",
            remedy="train the head first, in an entry before the one that restructures the model",
            field="/chain",
        )
    student = Student(begun.folder, ranks.device, hold_in_nf4 if is_held else None)
    if technique.scope != "lora":  # adapters have a rank of their own on top
        train_factors(run, student)
    return student, begun.made


def _has_form(folder: Path) -> bool:
    """Whether documents beside the weights say something of tensors by their names."""
    return bool(load_sparsity(folder) or load_factored(folder) or any(True for _ in shares_of(folder)))


def _choose(
    run: "Run", technique: "Distill | Finetune | Heal", student: Student, ranks: Ranks, made: frozenset[str]
) -> RankBudget | None:
    """Let move what the scope names; the budget that adapters share, where they have one."""
    if technique.scope == "full":
        student.model.requires_grad_()
        return None
    small = small_parameters(student.model)  # adapters may add vectors of their own
    drawn = [parameter for path, parameter in student.model.named_parameters() if path in made]
    if technique.scope == "lora":
        add_adapters(student, technique.lora, run.seed)
        if sparse := load_sparsity(run.checkpoint):
            keep_zeros(student, technique.lora, sparse)
    for parameter in [*drawn, *(small if technique.technique == "heal" else [])]:
        parameter.requires_grad_()
    return budget_of(student, technique.lora, technique.steps, ranks.count) if student.adapters else None


def _on_policy(run: "Run", technique: "Distill | Finetune | Heal", student: Student, ranks: Ranks) -> OnPolicy | None:
    if technique.technique != "distill" or not technique.on_policy:
        return None
    return OnPolicy(student, technique, run.seed, ranks.count)
