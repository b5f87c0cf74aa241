"""Low-rank adapters: what is trained beside frozen weights, and merged into them at the end."""

from typing import Literal, Self

from pydantic import Field, model_validator

from optcore.frozen import Frozen
from optcore.techniques.patterns import Pattern


class Lora(Frozen):
    """Train two narrow matrices beside each linear layer instead of its weight, and add their product to it at the end.

    Gradients and the optimizer's moments are kept for these matrices alone. They want a higher learning rate than whole
    weights do, such as 2e-4.
    """

    rank: int = Field(default=16, ge=1, le=4096)
    """Inner size of the two matrices; of `adalora`, what remains of it on average."""
    alpha: float = Field(default=32.0, gt=0)
    """The product is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of an adapter's inputs that is zero in each step."""
    variant: Literal["lora", "dora", "adalora"] = "lora"
    """`lora`: arXiv:2106.09685. `dora`: a row's length is trained apart from its direction (arXiv:2402.09353).
    `adalora`: starts with a higher rank and takes away, over all layers, what matters least (arXiv:2303.10512)."""
    modules: tuple[Pattern, ...] = Field(default=(), max_length=256)
    """Linear layers of the decoder with an adapter: exact module names, or regular expressions after `re:`. Empty: all
    of them that are larger than the rank, expert routers left out."""
    base: Literal["as_is", "nf4"] = "as_is"
    """What the frozen weights of the decoder's linear layers are held in. `nf4`: 4.13 bits a weight (QLoRA,
    arXiv:2305.14314), for models that would not fit; what is written at the end has been through these codes."""
    initial_rank: int | None = Field(default=None, ge=2, le=4096)
    """Of `adalora`: the rank at first; None: one and a half times `rank`."""
    warm: float = Field(default=0.1, ge=0, le=1)
    """Of `adalora`: share of the steps before the first rank goes."""
    final: float = Field(default=0.3, ge=0, le=1)
    """Of `adalora`: share of the steps after the last rank went."""
    interval: int = Field(default=10, ge=1)
    """Of `adalora`: steps between two choices of what goes."""
    orthogonal: float = Field(default=0.5, ge=0)
    """Of `adalora`: weight of the term that keeps an adapter's directions orthogonal, so that they can be judged one by
    one."""

    @property
    def first_rank(self) -> int:
        """The rank that training starts with."""
        if self.variant != "adalora":
            return self.rank
        return self.initial_rank or self.rank + (self.rank + 1) // 2

    @model_validator(mode="after")
    def _ranks_fall(self) -> Self:
        if self.variant != "adalora" and self.initial_rank is not None:
            raise ValueError("`initial_rank` is of `variant: adalora`")
        if self.variant == "adalora" and self.first_rank <= self.rank:
            raise ValueError(f"initial_rank ({self.first_rank}) must be larger than rank ({self.rank})")
        if self.variant == "adalora" and self.warm + self.final >= 1:
            raise ValueError("`warm` and `final` leave no steps in which ranks could go")
        return self
