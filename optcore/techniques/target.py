"""What a pruned model may cost at most, and how the shapes that meet it are searched."""

from typing import Literal, Self

from pydantic import Field, model_validator

from optcore.frozen import Frozen

_MOST_shapes = 512
_CALLED = {"params": "parameters", "bytes": "bytes", "latency": "ms a token"}


class Target(Frozen):
    """One bound. Up to 1 it is a share of what the model costs as it is, above 1 an amount."""

    params: float | None = Field(default=None, gt=0)
    """Parameters."""
    bytes: float | None = Field(default=None, gt=0)
    """Bytes of the checkpoint's tensors, without the files' headers."""
    latency: float | None = Field(default=None, gt=0)
    """Milliseconds of a decode step in transformers, one sequence at a time. Measured on the machine that searches;
    another one may choose otherwise."""

    @property
    def measure(self) -> Literal["params", "bytes", "latency"]:
        """What is bounded."""
        return "params" if self.params is not None else "bytes" if self.bytes is not None else "latency"

    @property
    def value(self) -> float:
        """The bound as it was given."""
        value: float = getattr(self, self.measure)
        return value

    @property
    def unit(self) -> str:
        """What is counted, for people."""
        return _CALLED[self.measure]

    def limit(self, whole: float) -> float:
        """The bound as an amount, for a model that costs `whole`."""
        return self.value * whole if self.value <= 1 else self.value

    def __str__(self) -> str:
        return f"{self.value:.4g} of its {self.unit}" if self.value <= 1 else f"{self.value:g} {self.unit}"

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if sum(value is not None for value in (self.params, self.bytes, self.latency)) != 1:
            raise ValueError("give one of `params`, `bytes` and `latency`")
        return self


class Search(Frozen):
    """Which shapes are tried, and how they are compared: all by their KL to the whole model as cut, the best few again
    after a short distillation, which can turn the order around (Minitron, arXiv:2408.11796)."""

    ffn: int = Field(default=16, ge=0, le=64)
    """Numbers of FFN channels to try below all of them, in even steps down to `most_width` taken away; 0 keeps them."""
    hidden: int = Field(default=4, ge=0, le=64)
    """Hidden sizes to try, in the same way."""
    heads: int = Field(default=0, ge=0, le=64)
    """Numbers of query heads to try, in the same way."""
    depth: int = Field(default=4, ge=0, le=64)
    """Numbers of layers to leave out that are tried, up to `most_depth` of them; 0 keeps them."""
    most_width: float = Field(default=0.4, gt=0, lt=1)
    """Largest share of each width that may go."""
    most_depth: float = Field(default=0.2, gt=0, lt=1)
    """Largest share of the layers that may go."""
    candidates: int = Field(default=6, ge=1, le=100)
    """Shapes of the lowest KL as cut that are distilled."""
    samples: int = Field(default=32, ge=1, le=100_000)
    """Windows that KL is measured on: calibration text that nothing is ranked by and nothing learned from."""
    sequence_length: int = Field(default=512, ge=2, le=131_072)
    """Tokens a window, measured on or learned from; cut to what the model can hold."""
    steps: int = Field(default=100, ge=0, le=10**6)
    """Steps of each short distillation. 0: KL as cut decides."""
    batch: int = Field(default=8, ge=1, le=65_536)
    """Windows a step."""
    learning_rate: float = Field(default=1e-4, gt=0, le=1)
    """The highest of each short distillation."""

    @model_validator(mode="after")
    def _grid_is_bounded(self) -> Self:
        if (tried := (self.hidden + 1) * (self.heads + 1) * (self.depth + 1)) > _MOST_shapes:
            raise ValueError(
                f"hidden, heads and depth make {tried} shapes, and each is written and measured: at most {_MOST_shapes}"
            )
        return self
