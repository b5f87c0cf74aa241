"""What a student is trained on: weighted terms that compare it with its teacher, or with the text."""

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from optcore.frozen import Frozen

Temperature = Annotated[float, Field(gt=0, le=100)]
LayerIndex = Annotated[int, Field(ge=0)]
Pairs = Annotated[tuple[tuple[LayerIndex, LayerIndex], ...], Field(min_length=1, max_length=1000)]


class Loss(Frozen):
    """One term of the objective: a number for each predicted token, times a weight."""

    title: ClassVar[str]
    paper: ClassVar[str] = ""
    """Where the term is described; empty for what every textbook has."""
    needs_teacher: ClassVar[bool] = True
    """Whether it compares with a teacher; the text alone is enough otherwise."""
    reads_top_k: ClassVar[bool] = False
    """Whether a teacher's few most likely tokens are enough, so that a cache of them can stand in for the teacher."""

    weight: float = Field(default=1.0, gt=0)
    """What the term is multiplied by before terms are added."""


class ForwardKl(Loss):
    """KL(teacher || student): the student is to cover all that the teacher finds likely. The default for recovery."""

    title: ClassVar[str] = "Forward KL"
    paper: ClassVar[str] = "https://arxiv.org/abs/1503.02531"
    reads_top_k: ClassVar[bool] = True

    kind: Literal["forward_kl"] = "forward_kl"
    """KL(teacher || student), in nats."""
    temperature: Temperature = 1.0
    """Both models' logits are divided by it and the loss is multiplied by its square, so that gradients keep their
    size."""


class ReverseKl(Loss):
    """KL(student || teacher): the student may leave out what it cannot hold. For students far smaller than teachers."""

    title: ClassVar[str] = "Reverse KL"
    paper: ClassVar[str] = "https://arxiv.org/abs/2306.08543"

    kind: Literal["reverse_kl"] = "reverse_kl"
    """KL(student || teacher), in nats."""
    temperature: Temperature = 1.0
    """Both models' logits are divided by it and the loss is multiplied by its square."""


class Jsd(Loss):
    """Generalized Jensen-Shannon divergence, between forward and reverse KL.

    With teacher P, student Q and M = beta P + (1 - beta) Q it is beta KL(P || M) + (1 - beta) KL(Q || M). The value
    itself goes to 0 at both ends of beta; divided by beta it goes to KL(P || Q) as beta goes to 0, and divided by
    1 - beta to KL(Q || P) as beta goes to 1. A beta near either end therefore wants a larger weight.
    """

    title: ClassVar[str] = "Jensen-Shannon divergence"
    paper: ClassVar[str] = "https://arxiv.org/abs/2306.13649"

    kind: Literal["jsd"] = "jsd"
    """Generalized Jensen-Shannon divergence, in nats."""
    beta: float = Field(default=0.5, gt=0, lt=1)
    """The teacher's share of the mixture: near 0 gradients point as those of forward KL do, near 1 as those of reverse
    KL."""
    temperature: Temperature = 1.0
    """Both models' logits are divided by it and the loss is multiplied by its square."""


class LogitsMse(Loss):
    """Mean over the vocabulary of the squared difference of logits. Published ablations find it worse than KL."""

    title: ClassVar[str] = "Logits MSE"
    paper: ClassVar[str] = "https://arxiv.org/abs/1312.6184"

    kind: Literal["logits_mse"] = "logits_mse"
    """Mean squared difference of logits."""


class CrossEntropy(Loss):
    """Negative log likelihood of the text itself. Adapts a model to a task; recovers less than a teacher does."""

    title: ClassVar[str] = "Cross-entropy"
    needs_teacher: ClassVar[bool] = False
    reads_top_k: ClassVar[bool] = True

    kind: Literal["cross_entropy"] = "cross_entropy"
    """Negative log likelihood of the next token, in nats."""


class HiddenMse(Loss):
    """Squared difference of hidden states after mapped layers, relative to the teacher's mean square.

    Where the widths differ, a learned linear map takes the student's states to the teacher's; it is dropped at the end.
    """

    title: ClassVar[str] = "Hidden-state MSE"
    paper: ClassVar[str] = "https://arxiv.org/abs/1909.10351"

    kind: Literal["hidden_mse"] = "hidden_mse"
    """Relative squared difference of hidden states."""
    layers: Literal["all"] | Pairs = "all"
    """Pairs (teacher layer, student layer) counted from 0, compared after the layer. `all`: every student layer, spread
    evenly over the teacher's so that the last belongs to the last."""
    progressive: bool = False
    """Start with the lowest pair and add the others, upwards, over the first half of training."""


AnyLoss = Annotated[
    ForwardKl | ReverseKl | Jsd | LogitsMse | CrossEntropy | HiddenMse,
    Field(discriminator="kind"),
]


def _each_kind_once(terms: "tuple[AnyLoss, ...]") -> "tuple[AnyLoss, ...]":
    kinds = [term.kind for term in terms]
    twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} is there twice; name each kind of loss once, with one weight")
    return terms


Losses = Annotated[tuple[AnyLoss, ...], Field(min_length=1, max_length=6), AfterValidator(_each_kind_once)]


def needs_teacher(terms: Iterable[Loss]) -> bool:
    """Whether any of the terms compares with a teacher."""
    return any(term.needs_teacher for term in terms)


def reads_top_k(terms: Iterable[Loss]) -> bool:
    """Whether a teacher's top-k is enough for all of the terms."""
    return all(term.reads_top_k for term in terms)


def top_k_temperature(terms: Iterable[Loss]) -> float:
    """At what temperature a teacher's top k is taken so that it serves these terms."""
    return next((term.temperature for term in terms if isinstance(term, ForwardKl)), 1.0)
