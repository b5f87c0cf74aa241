"""One-shot sparsity: part of the weights become zero, the rest makes up for them."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from optcore.techniques.patterns import Pattern
from optcore.techniques.restructuring import Restructuring

if TYPE_CHECKING:
    from optcore.run import Run

_LONGEST_GROUP = 64
_DEFAULT_ratio = 0.5
OWL_SPREAD = 0.08
"""OWL's lambda: how far a layer's ratio may be from the mean."""


def _is_group(pattern: str) -> str:
    n, m = map(int, pattern.split(":"))
    if not 0 < n < m <= _LONGEST_GROUP:
        raise ValueError(f"{pattern!r} must be N:M with 0 < N < M <= {_LONGEST_GROUP}: how many of M weights stay")
    return pattern


Group = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,2}:[0-9]{1,2}$"), AfterValidator(_is_group)]


class Sparsify(Restructuring):
    """Set part of the decoder's weights to zero, streaming one layer at a time; the result is stored dense.

    Later layers are measured on what the sparse ones before them give. GPUs compute nothing faster with zeros, unless
    they are 2:4 and the program asks for it: the report says what does.
    """

    title: ClassVar[str] = "One-shot sparsity"
    paper: ClassVar[str] = "https://arxiv.org/abs/2301.00774"
    leaves: ClassVar[frozenset[str]] = frozenset({"sparse"})

    technique: Literal["sparsify"] = "sparsify"
    method: Literal["magnitude", "random", "wanda", "ria", "sparsegpt", "alps"] = "sparsegpt"
    """Which weights stay. `magnitude`, `random`: of a whole matrix, no text needed. `wanda`, `ria`: by magnitude and
    the inputs' norms, in each output's row. `sparsegpt`: by what a weight costs once the rest has made up for it, which
    it does. `alps`: support and values solved for together, the slowest and closest."""
    ratio: float | None = Field(default=None, ge=0, lt=1)
    """Share of the weights that become zero; 0.5 where neither this nor `pattern` is given."""
    pattern: Group | None = None
    """Instead of `ratio`: `N:M`, such as `2:4`, N of every M inputs in a row stay."""
    owl: bool = False
    """A ratio for each layer, `ratio` in the mean: layers with more outliers lose fewer, up to 0.16 (OWL)."""
    block: int = Field(default=128, ge=_LONGEST_GROUP, le=4096)
    """Columns whose mask `sparsegpt` chooses at once."""
    damping: float = Field(default=0.01, gt=0, le=1)
    """Added to the diagonal of the inputs' second moments, as a share of its mean."""
    ignore: tuple[Pattern, ...] = Field(default=(), max_length=256)
    """Linear layers of the decoder to leave alone: exact module names, or regular expressions after `re:`.
    Embeddings, the head and expert routers are always left."""

    @property
    def keeps_sizes(self) -> bool:
        """Zeros are stored as any value."""
        return True

    @property
    def group(self) -> tuple[int, int] | None:
        """N and M of the pattern."""
        if self.pattern is None:
            return None
        n, m = map(int, self.pattern.split(":"))
        return n, m

    @property
    def share(self) -> float:
        """Share of the weights that become zero."""
        if self.group:
            return 1 - self.group[0] / self.group[1]
        return _DEFAULT_ratio if self.ratio is None else self.ratio

    @property
    def measures(self) -> bool:
        """Whether any choice depends on text."""
        return self.owl or self.method not in ("magnitude", "random")

    @property
    def summary(self) -> str:
        """What it does to a model, in one line for people."""
        how = f"{self.pattern} sparsity" if self.pattern else f"{self.share:.0%} unstructured sparsity"
        return f"{how} by {self.method}{', a ratio for each layer' if self.owl else ''}"

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if self.pattern and self.ratio is not None:
            raise ValueError("`ratio` and `pattern` both say how much stays: give one of them")
        if self.owl and self.pattern:
            raise ValueError("`owl` gives each layer another ratio, and `pattern` fixes it: give one of them")
        if self.owl and not OWL_SPREAD * 2 <= self.share <= 1 - OWL_SPREAD * 2:
            raise ValueError(f"`owl` moves ratios by up to {2 * OWL_SPREAD}: choose a ratio that far from 0 and 1")
        return self

    @property
    def trivial(self) -> dict[str, object]:
        """As many zeros, where weights are smallest; for `magnitude` where chance wants them."""
        return {"method": "random" if self.method in ("magnitude", "random") else "magnitude", "owl": False}

    def apply(self, run: "Run") -> None:
        """Write the sparse checkpoint, and `sparsity.json`."""
        from optcore.restructure.sparsify import sparsify_checkpoint

        sparsify_checkpoint(run, self)
