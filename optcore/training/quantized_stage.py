"""QAT and QAD: a quantized checkpoint in, one in the same formats out."""

from typing import TYPE_CHECKING

from torch import nn

from optcore.quantization import load_quantization
from optcore.techniques.distilling import Distilling
from optcore.techniques.losses import CrossEntropy
from optcore.training.adapters import add_adapters
from optcore.training.checkpoints import State
from optcore.training.fake_quant import ScalePolicy
from optcore.training.loop import Loop
from optcore.training.memory import check_memory
from optcore.training.merge import note_merge
from optcore.training.quantized_writer import write_quantized
from optcore.training.rank_budget import RankBudget, budget_of
from optcore.training.ranks import Ranks
from optcore.training.report import note_adapters, note_training
from optcore.training.student import Student
from optcore.training.teacher import CachedTeacher, LiveTeacher, Teacher
from optcore.training.trainee import Trainee
from optcore.training.windows import Windows

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.qad import Qad
    from optcore.techniques.qat import Qat
    from optcore.techniques.training import Training


def train_quantized(run: "Run", technique: "Qad | Qat") -> None:
    """Train the student of `run.checkpoint` and write its codes to `run.out`."""
    ranks = Ranks(technique.batch)
    teacher = None if technique.technique == "qat" or run.answers else run.teacher or run.checkpoint
    moving = 1.0 if technique.scope == "full" else 0.0
    check_memory(run.checkpoint, teacher, moving=moving, device=ranks.device, processes=ranks.count)
    student = Student(run.checkpoint, ranks.device)
    student.simulate(_policy(technique, student))
    budget = _choose(run, technique, student, ranks)
    if technique.gradient_checkpointing:
        student.recompute_layers()
    losses = (CrossEntropy(),) if technique.technique == "qat" else technique.losses
    trainee = Trainee(student, losses, teacher_of(run, technique, ranks), run.seed)
    ranks.shard(trainee, list(student.layers))
    windows = Windows(run.windows)
    loop = Loop(run, technique, trainee, windows, judge, ranks, budget)
    state = _trained(run, technique, loop)
    if technique.scope == "lora":
        note_merge(run, student, trainee, loop)
        note_adapters(run, student, budget)
    write_quantized(run, student, ranks)
    note_training(run, technique, state, windows.facts)
    ranks.leave()


def _trained(run: "Run", technique: "Qad | Qat", loop: Loop) -> State:
    """Train, but not where there is nothing to win."""
    gap = loop.start()
    bound = technique.skip_below
    if "kl" in gap and gap["kl"] < bound:
        run.notice(f"nothing was trained: KL to the teacher is {gap['kl']:.2g} nats a token, less than {bound:g}")
        return loop.state
    return loop.train()


def _policy(technique: "Qad | Qat", student: Student) -> ScalePolicy:
    if technique.scope == "scales":
        return "learn"
    if technique.scales != "auto":
        return technique.scales
    description = load_quantization(student.folder)
    return "freeze" if description is None or description.searched else "recompute"


def _choose(run: "Run", technique: "Qad | Qat", student: Student, ranks: Ranks) -> RankBudget | None:
    """Let move what the scope names; the budget that adapters share, where they have one."""
    small = small_parameters(student.layers)  # adapters may add vectors of their own
    if technique.scope == "lora":
        add_adapters(student, technique.lora, run.seed)
    else:
        _choose_own(student, technique)
    if technique.norms:
        for parameter in small:
            parameter.requires_grad_()
    return budget_of(student, technique.lora, technique.steps, ranks.count) if student.adapters else None


def _choose_own(student: Student, technique: "Qad | Qat") -> None:
    for module in student.linears.values():
        if technique.scope == "scales":
            module.log_gain.requires_grad_()
        else:
            module.weight.requires_grad_()


def small_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Norms and biases: parameters with one dimension."""
    return [parameter for parameter in model.parameters() if parameter.ndim == 1]


def teacher_of(run: "Run", technique: "Training", ranks: Ranks) -> Teacher | None:
    """Whom a technique's student learns from; None where it learns from the text."""
    if not isinstance(technique, Distilling):
        return None
    if run.answers:
        return CachedTeacher(run.answers, ranks.device)
    keeps_layers = any(loss.kind == "hidden_mse" for loss in technique.losses)
    return LiveTeacher(run.teacher or run.checkpoint, ranks.device, keeps_layers=keeps_layers)


def judge(values: dict[str, float]) -> float:
    """KL to the teacher where there is one, else the nats of the text."""
    return values.get("kl", values.get("cross_entropy", float("inf")))
