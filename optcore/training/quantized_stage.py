"""QAT and QAD: a quantized checkpoint in, one in the same formats out."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn

from optcore.quantization import Quantization, load_quantization
from optcore.techniques.distilling import Distilling
from optcore.techniques.losses import CrossEntropy
from optcore.training.adapters import add_adapters
from optcore.training.checkpoints import State
from optcore.training.fake_quant import FakeQuantLinear, ScalePolicy, as_stored
from optcore.training.loop import Loop
from optcore.training.memory import check_memory
from optcore.training.merge import note_merge
from optcore.training.quantized_writer import restore_quantized, write_quantized
from optcore.training.rank_budget import RankBudget, budget_of
from optcore.training.ranks import Ranks
from optcore.training.report import note_adapters, note_training
from optcore.training.student import Student, small_parameters
from optcore.training.teacher import teacher_of
from optcore.training.trainee import Trainee
from optcore.training.windows import Windows

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.quantization_aware import QuantizationAware


def train_quantized(run: "Run", technique: "QuantizationAware") -> None:
    """Train the student of `run.checkpoint` and write its codes to `run.out`; where nothing was won, what was read."""
    ranks = Ranks(technique.batch)
    losses = technique.losses if isinstance(technique, Distilling) else (CrossEntropy(),)
    teacher = run.teacher or run.checkpoint if isinstance(technique, Distilling) and not run.answers else None
    check_memory(technique, run.checkpoint, teacher, ranks)
    student = Student(run.checkpoint, ranks.device)
    policy = policy_of(technique, load_quantization(student.folder))
    student.simulate(policy)
    budget = _choose(run, technique, student, ranks)
    if technique.gradient_checkpointing:
        student.recompute_layers()
    trainee = Trainee(student, losses, teacher_of(run, technique, ranks), run.seed)
    ranks.shard(trainee, list(student.layers))
    windows = Windows(run.windows)
    loop = Loop(run, technique, trainee, windows, ranks, budget)
    state = _trained(run, technique, loop, student)
    if state.best == 0:
        if ranks.is_first:
            restore_quantized(run)
        ranks.wait()
    else:
        if technique.scope == "lora":
            note_merge(run, student, trainee, loop)
            note_adapters(run, student, budget)
        write_quantized(run, student, ranks, policy)
    note_training(run, technique, state, windows.facts)
    ranks.leave()


def _trained(run: "Run", technique: "QuantizationAware", loop: Loop, student: Student) -> State:
    """Train, but not where there is nothing to win. Candidate 0 is the checkpoint, in its own scales."""
    with as_stored(student.linears.values()):
        gap = loop.start()
    bound = technique.skip_below
    if "kl" in gap and gap["kl"] < bound:
        run.notice(f"nothing was trained: KL to the teacher is {gap['kl']:.2g} nats a token, less than {bound:g}")
        return loop.state
    return loop.train()


def policy_of(technique: "QuantizationAware", description: Quantization | None) -> ScalePolicy:
    """What scales do while this technique trains what is described."""
    if technique.scope == "scales":
        return "learn"
    if technique.scales != "auto":
        return technique.scales
    return "freeze" if description is None or description.searched else "recompute"


def _choose(run: "Run", technique: "QuantizationAware", student: Student, ranks: Ranks) -> RankBudget | None:
    """Let move what the scope names; the budget that adapters share, where they have one."""
    if technique.scope != "lora":
        choose(student.linears.values(), student.layers, technique)
        return None
    small = small_parameters(student.layers) if technique.norms else []  # adapters may add vectors of their own
    add_adapters(student, technique.lora, run.seed)
    for parameter in small:
        parameter.requires_grad_()
    return budget_of(student, technique.lora, technique.steps, ranks.count)


def choose(linears: Iterable[FakeQuantLinear], layers: nn.Module, technique: "QuantizationAware") -> None:
    """Let move what a scope without adapters names."""
    for module in linears:
        if technique.scope == "scales":
            module.log_gain.requires_grad_()
        else:
            module.weight.requires_grad_()
    if technique.norms:
        for parameter in small_parameters(layers):
            parameter.requires_grad_()
