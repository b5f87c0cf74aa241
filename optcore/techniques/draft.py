"""Speculative drafts: a small model beside the one that ships, which guesses what that will say."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from optcore.references import ModelRef
from optcore.techniques.data import TrainingData
from optcore.techniques.training import Training

if TYPE_CHECKING:
    from optcore.draft_document import DraftDocument
    from optcore.run import Run

Method = Literal["eagle3", "medusa", "mtp", "block", "model", "ngram"]
Layer = Annotated[int, Field(ge=0, le=1000)]

_READERS: tuple[Method, ...] = ("eagle3", "medusa", "mtp", "block")
"""Drafts that read what the target computed."""
_OF: dict[str, tuple[Method, ...]] = {
    "unroll": ("eagle3", "mtp"),
    "decay": _READERS,
    "loss": _READERS,
    "taps": ("eagle3", "block"),
    "layers": ("block", "model"),
    "vocabulary": ("eagle3", "medusa"),
    "mask_token": ("block",),
    "features": _READERS,
    "feature_dtype": _READERS,
    "start": (*_READERS, "model"),
    "layout": ("eagle3",),
}
"""Settings that only some methods have."""


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
    stands_beside: ClassVar[bool] = True

    technique: Literal["draft"] = "draft"
    method: Method = "eagle3"
    """What kind of draft."""
    steps: int = Field(default=500, ge=0, le=10**7)
    """Steps of the optimizer; 0, which is all that `ngram` knows, trains nothing."""
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
    """Tokens that the draft can say, the most frequent ones. None: 32000, or all where there are fewer; `mtp` and
    `block` share the model's head and so can say all."""
    mask_token: int | None = Field(default=None, ge=0)
    """Of `block`: a token of the model that never occurs in text, which stands where a guess is wanted. None: the draft
    learns an embedding for it, which no engine loads from safetensors."""
    features: Literal["online", "kept"] = "online"
    """`kept`: the target is asked once, and what the draft reads is kept on disk, for targets that do not fit beside
    it in memory. How much that takes is said before it is written."""
    feature_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """What the features are rounded to, kept or not."""
    start: ModelRef | None = None
    """A draft to begin with, in one of the layouts that engines load; of `model` a small model with the same
    vocabulary, in place of the target with fewer layers. With `steps: 0` it is only measured."""
    layout: Literal["eagle", "speculators", "modelopt"] = "eagle"
    """Of `eagle3`: how it is written. `eagle`: as SpecForge writes it, for SGLang, vLLM and TensorRT-LLM."""

    @property
    def summary(self) -> str:
        """What was done, in one line for people."""
        trained = f"trained for {self.steps} steps" if self.steps else "not trained"
        return f"speculative draft ({self.method}), {'no training needed' if self.method == 'ngram' else trained}"

    @property
    def trained_answers(self) -> int:
        """How many answers of each place training looks at: with heads or a block of their own, all that it gives."""
        return self.tokens if self.method in ("medusa", "block") else self.unroll

    @property
    def reads_states(self) -> bool:
        """Whether it guesses from what the target computed, rather than from text."""
        return self.method in _READERS

    @property
    def alone(self) -> str:
        """Drafts are trained in one process."""
        return "draft"

    @property
    def models(self) -> dict[str, ModelRef]:
        """A small language model to begin with."""
        return {"start": self.start} if self.start and self.method == "model" else {}

    @property
    def drafts(self) -> dict[str, ModelRef]:
        """A draft to begin with, which is no language model of its own."""
        return {"start": self.start} if self.start and self.method != "model" else {}

    @property
    def features_alone(self) -> Self:
        """These settings as far as kept features depend on them beside the windows: jobs that train otherwise share
        what was kept."""
        on = {"method": self.method, "taps": self.taps, "feature_dtype": self.feature_dtype, "features": self.features}
        return type(self).model_validate(on)

    @model_validator(mode="before")
    @classmethod
    def _ngrams_take_no_steps(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("method") == "ngram":
            return {"steps": 0, **given}
        return given

    @model_validator(mode="after")
    def _settings_fit_the_method(self) -> Self:
        fields = type(self).model_fields
        changed = [name for name in fields if getattr(self, name) != fields[name].default]
        for name in changed:
            if self.method not in _OF.get(name, (self.method,)):
                raise ValueError(f"`{name}` is a setting of {' and '.join(_OF[name])}: leave it out of `{self.method}`")
        unused = next((name for name in changed if name not in ("method", "tokens", "steps")), "")
        if self.method == "ngram" and (self.steps or unused):
            raise ValueError(f"`ngram` looks into the text and is not trained: leave `{unused or 'steps'}` out")
        if self.gate:
            raise ValueError("a draft leaves the model as it is, so there is nothing to gate: leave `gate` out")
        return self

    @model_validator(mode="after")
    def _taps_ascend(self) -> Self:
        taps = list(self.taps or ())
        if taps != (ascending := sorted(set(taps))):
            raise ValueError(
                f"engines hand over what layers compute in ascending order, each once, and `taps` are {taps}: "
                f"give {ascending}"
            )
        return self

    @model_validator(mode="after")
    def _can_be_made(self) -> Self:
        if self.data.kind == "labelled":
            raise ValueError("a draft guesses tokens, and labelled texts have one label each: use another kind of data")
        if self.method == "model" and self.start and self.layers:
            raise ValueError("`layers` is how many of the target's stay, and `start` takes their place: give one")
        if self.start and self.features == "kept":
            raise ValueError("a draft to begin with may read other layers than are kept: leave `features` out")
        if self.reads_states and not (self.steps or self.start):
            raise ValueError("nothing would be trained: give `steps`, or name the draft to measure in `start`")
        if self.reads_states and self.steps and self.sequence_length < self.tokens + 2:
            raise ValueError(
                f"a window of {self.sequence_length} tokens has no place behind which {self.tokens} are drafted: raise "
                f"`sequence_length` to at least {self.tokens + 2}, or draft fewer `tokens`"
            )
        return self

    def apply(self, run: "Run") -> None:
        """Write the draft, and what it is."""
        from optcore.links import link_draft

        if self.method != "ngram" and not self.steps:  # what trains was asked before its text was prepared
            from optcore.training.draft_refusals import check_draft_plan

            check_draft_plan(run, self)
        if self.method == "model":
            from optcore.training.small_model import make_small_model

            make_small_model(run, self)
        elif self.start and not self.steps:
            link_draft(run.models[0], run.out)
        elif self.method != "ngram":
            from optcore.training.draft_stage import train_draft

            train_draft(run, self)
        self._described(run).save(run.out)

    def _described(self, run: "Run") -> "DraftDocument":
        from optcore.draft_document import DraftDocument

        said = DraftDocument(method=self.method, tokens=self.tokens, steps=self.steps)
        if not self.reads_states:
            return said
        from optcore.drafts.folder import layout_found, read_parts
        from optcore.speculative.outline import TargetOutline

        parts = read_parts(run.out, TargetOutline(run.checkpoint).layers)
        facts = {"taps": parts.taps, "layout": layout_found(run.out), "has_mask_token": parts.mask_token is not None}
        return said.model_copy(update=facts)
