"""Speculative drafts: a small model beside the one that ships, which guesses what that will say."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from optcore.references import ModelRef
from optcore.techniques.data import TrainingData
from optcore.techniques.training import Training

if TYPE_CHECKING:
    pass

Method = Literal["eagle3", "medusa", "mtp", "block", "model", "ngram"]
Layer = Annotated[int, Field(ge=0, le=1000)]


class Draft(Training):
    """Train a draft on the very model that ships, quantized or pruned as it is by now, for speculative decoding: the
    draft guesses several tokens, the model verifies them in one pass, and the text stays exactly the model's own.

    `eagle3` reads three of the model's layers and is trained on its own guesses (training-time test,
    arXiv:2503.01840); `mtp` applies one layer again and again; `medusa` has a head for each token ahead; `block`
    guesses all tokens in one pass (DFlash, arXiv:2602.06036); `model` is the model itself with fewer layers,
    distilled; `ngram` looks what followed the same words before, and needs no training. The draft learns from text
    that the model wrote itself. The weights of the model stay what they are.
    """

    title: ClassVar[str] = "Speculative draft"
    paper: ClassVar[str] = "https://arxiv.org/abs/2503.01840"

    technique: Literal["draft"] = "draft"
    method: Method = "eagle3"
    """What kind of draft."""
    learning_rate: float = Field(default=1e-4, gt=0, le=1)
    """The highest, after the warm-up."""
    clip: float = Field(default=0.5, gt=0)
    """Largest norm of all gradients together."""
    data: TrainingData = TrainingData(kind="generated", prompt_tokens=32)
    """Text that the target writes by default: a draft learns to guess the target, not the world."""
    tokens: int = Field(default=5, ge=1, le=32)
    """Tokens drafted a round, in the measurements and in the settings for engines; of `medusa` and `block` also how
    many are trained."""
    unroll: int = Field(default=4, ge=1, le=16)
    """Of `eagle3` and `mtp`: how many times the draft goes on from its own guesses in training; 1 is without
    training-time test."""
    decay: float = Field(default=0.8, gt=0, le=1)
    """How much less each further token counts."""
    loss: Literal["kl", "lk"] = "kl"
    """`lk`: on the way from KL to the acceptance rate itself (arXiv:2602.23881)."""
    taps: tuple[Layer, ...] | None = Field(default=None, min_length=1, max_length=8)
    """Of `eagle3` and `block`: numbers of the layers, from 0, whose outputs are read. None: a low, a middle and a high
    one; for `block` five."""
    layers: int | None = Field(default=None, ge=1, le=64)
    """Layers of the draft: of `block` (None: 5) and of `model` (None: a quarter of the target's)."""
    vocabulary: int | None = Field(default=None, ge=1)
    """Tokens that the draft can say, the most frequent ones. None: 32000, or all where there are fewer."""
    features: Literal["online", "kept"] = "online"
    """`kept`: the target is asked once, and what the draft reads is kept on disk, for targets that do not fit beside
    it in memory. How much that takes is said before it is written."""
    feature_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """What the features are rounded to, kept or not."""
    start: ModelRef | None = None
    """A draft to begin with, in one of the layouts that engines load; with `steps: 0` it is only measured."""
    layout: Literal["eagle", "speculators", "modelopt"] = "eagle"
    """Of `eagle3`: how it is written. `eagle`: as SpecForge writes it, for SGLang, vLLM and TensorRT-LLM."""

    @property
    def leaves_weights(self) -> bool:
        """The target stays what it is."""
        return True
