"""Upcycling: a dense model as a mixture of experts that can be trained on."""

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from optcore.techniques.restructuring import Restructuring

if TYPE_CHECKING:
    from optcore.run import Run


class Upcycle(Restructuring):
    """Make a mixture of experts out of a dense model: each feed-forward network is copied, and a new router chooses
    between the copies (sparse upcycling). Llama and Mistral become Mixtral, Qwen2 becomes Qwen2-MoE, Qwen3 Qwen3-MoE.

    The gates of the chosen copies sum to 1, so the result computes what the dense model does, at more bytes and more
    work a token: it is worth nothing until `finetune` or `distill` after it has taught the copies different things.
    It has no rival: it is the dense model.
    """

    title: ClassVar[str] = "Upcycling"
    paper: ClassVar[str] = "https://arxiv.org/abs/2212.05055"

    technique: Literal["upcycle"] = "upcycle"
    experts: int = Field(default=8, ge=2, le=256)
    """Copies in each layer."""
    top_k: int = Field(default=2, ge=1, le=256)
    """How many of them a token is given to. With 1 its gate is always 1, and Mixtral's router learns nothing."""
    jitter: float = Field(default=0.0, ge=0, le=1)
    """Noise in all copies but the first, as a share of the standard deviation of each matrix, so that they can part."""
    reinitialize: float = Field(default=0.0, ge=0, le=1)
    """Share of the inner channels of all copies but the first that are drawn anew, with the mean and the deviation of
    their matrix (Drop-Upcycling, arXiv:2502.19261, where it is 0.5 and the first copy is no exception). Costs quality
    until it has been trained for long."""

    @property
    def is_exact(self) -> bool:
        """Whether all copies are alike."""
        return not self.jitter and not self.reinitialize

    @property
    def summary(self) -> str:
        """What it does to a model, in one line for people."""
        parted = f", jitter {self.jitter:g}" if self.jitter else ""
        parted += f", {self.reinitialize:.0%} of their channels drawn anew" if self.reinitialize else ""
        return f"{self.experts} copies of each feed-forward network, {self.top_k} for each token{parted}"

    @model_validator(mode="after")
    def _enough_experts(self) -> Self:
        if self.top_k > self.experts:
            raise ValueError(f"a token cannot be given to {self.top_k} of {self.experts} experts")
        return self

    def apply(self, run: "Run") -> None:
        """Write the mixture of experts."""
        from optcore.restructure.upcycle import upcycle

        upcycle(run, self)
