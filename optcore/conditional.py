"""How a model is to be run, where its weights do not say it: `conditional.json` beside them.

The checkpoint is a plain one that every program loads, and runs without these conditions. Our own evaluation runs it as
the document says.
"""

from pathlib import Path
from typing import Literal

from optcore.documents import read_document
from optcore.errors import RecipeError
from optcore.frozen import Frozen

DESCRIPTION = "conditional.json"
NOTHING = "nothing: no serving engine reads conditional.json"


class SparseInput(Frozen):
    """The input of one linear layer: which of its values are taken for zero."""

    ratio: float
    """The share that was asked for."""
    reached: float
    """The share that was zero on the calibration text, in the model as it is run."""
    threshold: float = 0.0
    """Values of at most this magnitude are zero."""
    dropped: tuple[int, ...] = ()
    """Channels that are always zero."""


class SparseInputs(Frozen):
    """Thresholds of activations (TEAL, arXiv:2408.14690)."""

    method: Literal["threshold", "static"]
    allocation: Literal["uniform", "greedy"]
    ratio: float
    """The mean over a layer's weights that was asked for."""
    tensors: dict[str, SparseInput]
    """By linear layer as the checkpoint names it."""


class Window(Frozen):
    """Which keys a token sees: itself, the last ones before it, and the first of all (StreamingLLM, arXiv:2309.17453).
    Positions stay what they are."""

    tokens: int
    """The token itself counted in."""
    sinks: int
    layers: tuple[int, ...]
    """Layers where it applies, from 0; all others see what the model's configuration says."""


class Exits(Frozen):
    """When tokens leave before the last layer (CALM, arXiv:2207.07061). One that has left keeps its hidden state: later
    layers make its keys and values of that, and the final norm and the head its prediction."""

    layers: tuple[int, ...]
    """After how many layers tokens may leave."""
    threshold: float
    """By how much a token's likeliest prediction must be ahead of the next one, in probability, at an exit: 0 lets all
    tokens leave at the first, above 1 none leaves at all."""
    risk: float
    """Share of tokens whose prediction may differ from the full depth's, as it was asked for."""
    delta: float
    """Probability that was allowed for the risk to be larger."""
    mean_layers: float
    """Layers that a token was in, in the mean over the text that the threshold was found on."""


class Conditional(Frozen):
    """The document beside the weights."""

    version: Literal[1] = 1
    inputs: SparseInputs | None = None
    window: Window | None = None
    early_exit: Exits | None = None
    accelerated_by: str = NOTHING

    def save(self, folder: Path) -> None:
        """Write it into a checkpoint folder."""
        (folder / DESCRIPTION).write_text(self.model_dump_json(indent=2, exclude_none=True) + "\n")


def load_conditional(folder: Path) -> Conditional | None:
    """Read the document; None for a model that is run as its configuration says."""
    return read_document(folder / DESCRIPTION, Conditional)


def check_unconditional(folder: Path, engine: str, field: str) -> None:
    """Raises `RecipeError` for a model that is to be run under conditions, of which `engine` knows nothing."""
    if (folder / DESCRIPTION).exists():
        raise RecipeError(
            f"the model is to be run as {DESCRIPTION} says, and {engine} would run all of it for every token",
            remedy="leave out the technique that wrote it, or use `target: {format: dense}`, which keeps the file",
            field=field,
        )
