"""QAT and QAD: a quantized checkpoint in, one in the same formats out."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn

from optcore.quantization import Quantization, load_quantization
from optcore.techniques.losses import CrossEntropy
from optcore.training.checkpoints import State
from optcore.training.fake_quant import FakeQuantLinear, ScalePolicy
from optcore.training.loop import Loop
from optcore.training.quantized_writer import write_quantized
from optcore.training.ranks import Ranks
from optcore.training.report import note_training
from optcore.training.student import Student
from optcore.training.teacher import CachedTeacher, LiveTeacher, Teacher
from optcore.training.trainee import Trainee
from optcore.training.windows import Windows

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.qad import Qad
    from optcore.techniques.qat import Qat


def train_quantized(run: "Run", technique: "Qad | Qat") -> None:
    """Train the student of `run.checkpoint` and write its codes to `run.out`."""
    ranks = Ranks(technique.batch)
    student = Student(run.checkpoint, ranks.device)
    student.simulate(policy_of(technique, load_quantization(student.folder)))
    choose(student.linears.values(), student.layers, technique)
    if technique.gradient_checkpointing:
        student.recompute_layers()
    losses = (CrossEntropy(),) if technique.technique == "qat" else technique.losses
    trainee = Trainee(student, losses, _teacher(run, technique, ranks), run.seed)
    ranks.shard(trainee, list(student.layers))
    windows = Windows(run.windows)
    loop = Loop(run, technique, trainee, windows, _judge, ranks)
    state = _trained(run, technique, loop)
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


def policy_of(technique: "Qad | Qat", description: Quantization | None) -> ScalePolicy:
    """What scales do while this technique trains what is described."""
    if technique.scope == "scales":
        return "learn"
    if technique.scales != "auto":
        return technique.scales
    return "freeze" if description is None or description.searched else "recompute"


def choose(linears: Iterable[FakeQuantLinear], layers: nn.Module, technique: "Qad | Qat") -> None:
    """Let move what the scope names."""
    for module in linears:
        if technique.scope == "scales":
            module.log_gain.requires_grad_()
        else:
            module.weight.requires_grad_()
    if technique.norms:
        for parameter in small_parameters(layers):
            parameter.requires_grad_()


def small_parameters(layers: nn.Module) -> list[nn.Parameter]:
    """Norms and biases: parameters with one dimension."""
    return [parameter for parameter in layers.parameters() if parameter.ndim == 1]


def _teacher(run: "Run", technique: "Qad | Qat", ranks: Ranks) -> Teacher | None:
    if technique.technique == "qat":
        return None
    if run.answers:
        return CachedTeacher(run.answers, ranks.device)
    keeps_layers = any(loss.kind == "hidden_mse" for loss in technique.losses)
    return LiveTeacher(run.teacher or run.checkpoint, ranks.device, keeps_layers=keeps_layers)


def _judge(values: dict[str, float]) -> float:
    """KL to the teacher where there is one, else the nats of the text."""
    return values.get("kl", values.get("cross_entropy", float("inf")))
