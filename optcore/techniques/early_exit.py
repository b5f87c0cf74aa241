"""Early exit: tokens that are settled leave before the last layer."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from optcore.techniques.distilling import Distilling
from optcore.techniques.losses import needs_teacher, reads_top_k
from optcore.techniques.restructuring import Restructuring
from optcore.techniques.training import Teacher

if TYPE_CHECKING:
    from optcore.run import Run

Depth = Annotated[int, Field(ge=1, le=1000)]


class EarlyExit(Distilling, Restructuring):
    """Teach every layer to speak through the model's own head (LayerSkip), then let each token leave at the first exit
    that is sure of it: where its likeliest token is ahead of the next one by a threshold (CALM). The threshold is the
    lowest one for which the share of tokens that would change is, by a test, no more than `risk`.

    The result is a plain checkpoint with the same tensors, and `conditional.json` beside it says how tokens leave. It
    serves in full depth everywhere; its exits serve self-speculative decoding, which changes no token. To leave out the
    same layers for all tokens, once and for all, is `prune` with `depth`.
    """

    title: ClassVar[str] = "Early exit"
    paper: ClassVar[str] = "https://arxiv.org/abs/2404.16710"
    needs: ClassVar[frozenset[str]] = frozenset({"dense"})
    leaves: ClassVar[frozenset[str]] = frozenset({"dense", "exits", "conditional"})
    rival_goes_on: ClassVar[bool] = True

    technique: Literal["early_exit"] = "early_exit"
    steps: int = Field(default=500, ge=0, le=10**7)
    """Steps of the optimizer; 0 trains nothing, and the exits are those of the model as it is."""
    teacher: Teacher = "source"
    """`source`: the model that the chain started from. `self`: the weights that the chain has made so far. Or another
    model with the same vocabulary."""
    exits: tuple[Depth, ...] | None = Field(default=None, min_length=1, max_length=1000)
    """After how many layers a token may leave, the fewest first. None: after each but the last."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """While training, the share of windows that skip the last layer; it rises exponentially from 0 at the first."""
    exit_scale: float = Field(default=1.0, gt=0, le=1)
    """How much exits count beside the full depth. An exit's weight grows with the square of its depth."""
    rotation: int = Field(default=2, ge=1, le=1000)
    """Each step trains one exit in so many, the others in turn; the full depth is trained in every step."""
    policy: Literal["confidence", "fixed"] = "confidence"
    """`fixed`: all tokens leave after as many layers as they would need in the mean by confidence, rounded up, but
    before the last one."""
    risk: float = Field(default=0.05, ge=0, lt=1)
    """Largest share of tokens whose prediction may differ from that of the full depth; 0: no token leaves early."""
    delta: float = Field(default=0.05, gt=0, lt=1)
    """How likely it may be that the risk is larger than that all the same."""
    threshold: float | None = Field(default=None, ge=0, le=2)
    """The lead, 0 to 1, with which a token leaves; above 1 none does. None: found by `risk` and `delta`."""
    samples: int = Field(default=256, ge=1, le=100_000)
    """Windows that the threshold is found on, neither trained nor validated on; of calibration text with `steps: 0`."""

    @property
    def summary(self) -> str:
        """What was done, in one line for people."""
        trained = f"after {self.steps} steps" if self.steps else "untrained"
        how = "at one depth for all tokens" if self.policy == "fixed" else f"at a risk of {self.risk:g}"
        return f"early exit {how}, {trained}"

    @property
    def trivial(self) -> dict[str, object]:
        """The same model, and as much of it computed, but the same depth for all tokens."""
        return {"policy": "fixed", "steps": 0}

    @property
    def alone(self) -> str:
        """Exits are trained in one process."""
        return "early_exit"

    @property
    def held_out(self) -> int:
        """Windows to validate on, and to find the threshold on."""
        return self.validation.samples + self.samples

    @model_validator(mode="after")
    def _losses_fit(self) -> Self:
        if any(loss.kind == "hidden_mse" for loss in self.losses):
            raise ValueError("exits are compared by what they predict: leave `hidden_mse` out")
        if self.teacher_top_k and not (needs_teacher(self.losses) and reads_top_k(self.losses)):
            raise ValueError("`teacher_top_k` is not for these `losses`; forward_kl is made for it")
        return self

    @model_validator(mode="after")
    def _exits_fit(self) -> Self:
        if self.exits and list(self.exits) != sorted(set(self.exits)):
            raise ValueError("`exits` are numbers of layers, each once, the fewest first")
        if self.data.kind == "labelled":
            raise ValueError("tokens leave early, and labelled texts have one label each: use another kind of data")
        return self

    def apply(self, run: "Run") -> None:
        """Train, find the threshold, and write both."""
        from optcore.restructure.early_exit import add_exits

        add_exits(run, self)
