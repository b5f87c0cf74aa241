"""What every technique that trains can be told: how long, how fast, on what, and which parameters move."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from optcore.frozen import Frozen
from optcore.gpus import visible_gpus
from optcore.references import ModelRef, NeededText, TextSource
from optcore.techniques.base import Technique
from optcore.techniques.data import TrainingData

Teacher = Literal["self", "source"] | ModelRef


class Validation(Frozen):
    """How progress is measured, on windows that are not trained on."""

    samples: int = Field(default=32, ge=1, le=100_000)
    """Windows."""
    every: int | None = Field(default=None, ge=1)
    """Steps between two measurements; None: a tenth of them all."""


class Training(Technique):
    """A stage that trains; which loss, and towards what, is its subclass's."""

    steps: int = Field(default=500, ge=1, le=10**7)
    """Steps of the optimizer."""
    batch: int = Field(default=8, ge=1, le=65_536)
    """Windows a step, over all processes."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Windows in memory at once; gradients add up to the same step. None: as many as make 4096 tokens."""
    sequence_length: int = Field(default=1024, ge=2, le=131_072)
    """Tokens a window; cut to what the model can hold."""
    learning_rate: float = Field(default=1e-5, gt=0, le=1)
    """The highest, after the warm-up."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls."""
    warmup: float = Field(default=0.05, ge=0, le=1)
    """Share of the steps in which it rises from zero."""
    final_learning_rate: float = Field(default=0.0, ge=0, le=1)
    """What it falls to, as a share of the highest."""
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """Decoupled, as in AdamW."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's two memories."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of all gradients together."""
    gradient_checkpointing: bool = True
    """Compute a layer's activations again in the backward pass instead of keeping them: a third more time, and the
    memory of one layer."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """What matrices are multiplied in; weights and the optimizer are float32 always. `auto`: bfloat16 on a GPU."""
    processes: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    """Processes of one machine that train the model together: its weights, gradients and optimizer are spread over
    them. `auto`: one for each visible GPU, as many as divide `batch`; one where there is no GPU, and for
    `scope: block`, `on_policy` and `variant: adalora`, which only one process can do."""
    validation: Validation = Validation()
    """What the best parameters are chosen by; the untrained start is a candidate too."""
    save_every: int | None = Field(default=None, ge=1)
    """Steps between two checkpoints, from which a run that was killed goes on exactly; None: with each validation."""
    data: TrainingData = TrainingData()
    """What it learns from."""

    @property
    def models(self) -> dict[str, ModelRef]:
        """A teacher, or a student, that the recipe names."""
        named = {name: getattr(self, name, None) for name in ("teacher", "student")}
        return {name: ref for name, ref in named.items() if isinstance(ref, ModelRef)}

    @property
    def texts(self) -> dict[str, NeededText]:
        """Training text that is not the recipe's own."""
        if not self.data.is_own:
            return {}
        text = TextSource.model_validate(self.data.model_dump(include=set(TextSource.model_fields)))
        tokens = (self.windows + self.held_out) * self.sequence_length
        return {"data": NeededText(text=text, tokens=tokens)}

    @property
    def prepared_data(self) -> TrainingData:
        """The data as windows are prepared of it."""
        return self.data

    @property
    def keeps_sizes(self) -> bool:
        """Training moves values: but a student takes the model's place, and a head for labels changes names."""
        return getattr(self, "student", None) is None and self.data.kind != "labelled"

    @property
    def keeps_states(self) -> bool:
        """A student has its own."""
        return getattr(self, "student", None) is None

    @property
    def has_adapters(self) -> bool:
        """Whether what moves are low-rank adapters."""
        return getattr(self, "scope", "") == "lora"

    @property
    def alone(self) -> str:
        """A setting that only one process can train with; empty where there is none."""
        scope, lora = getattr(self, "scope", None), getattr(self, "lora", None)
        settings = {
            "scope: block": scope == "block",  # layers are trained one after the other
            "on_policy": bool(getattr(self, "on_policy", 0)),  # a student that is spread out cannot write text
            "variant: adalora": scope == "lora" and lora is not None and lora.variant == "adalora",  # compares layers
        }
        return next((name for name, is_set in settings.items() if is_set), "")

    @property
    def process_count(self) -> int:
        """Processes to start."""
        if self.alone:
            return 1
        if self.processes != "auto":
            return self.processes
        return max(count for count in range(1, max(1, visible_gpus()) + 1) if self.batch % count == 0)

    @property
    def validate_every(self) -> int:
        """Steps between two validations."""
        return self.validation.every or max(1, self.steps // 10)

    @property
    def checkpoint_every(self) -> int:
        """Steps between two checkpoints."""
        return self.save_every or self.validate_every

    @property
    def windows(self) -> int:
        """Training windows to prepare."""
        return min(self.steps * self.batch, self.data.windows or self.steps * self.batch)

    @property
    def held_out(self) -> int:
        """Windows to prepare that are not trained on."""
        return self.validation.samples

    @model_validator(mode="after")
    def _work_divides(self) -> Self:
        if self.micro_batch and self.batch % self.micro_batch:
            raise ValueError(f"micro_batch ({self.micro_batch}) must divide batch ({self.batch})")
        if self.alone and self.processes not in (1, "auto"):
            raise ValueError(f"`{self.alone}` trains in one process: leave `processes` out")
        if self.processes != "auto" and self.batch % self.processes:
            raise ValueError(f"processes ({self.processes}) must divide batch ({self.batch})")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("betas must be at least 0 and below 1")
        return self
