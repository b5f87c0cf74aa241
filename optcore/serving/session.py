"""What every engine is asked for, and what a child process is told and answers.

Legend: T tokens of a window, P positions (T for language models, 1 for classifiers), V vocabulary or labels.
"""

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np


class ServingTask(NamedTuple):
    """What a child measures."""

    kind: str
    """What the model is for, in the Hub's words."""
    tokens: str
    """File of token ids, int64 [S, T], to compare predictions on."""
    reference: str
    """File of the source's logits on them, float32 [S, P, V]; empty where there is nothing to compare with."""
    prompt_tokens: int
    new_tokens: int
    """Greedy steps; 0 for models that do not generate."""
    threads: int

    @property
    def longest(self) -> int:
        """Tokens that a context must hold."""
        return max(self.prompt_tokens + self.new_tokens, int(np.load(self.tokens, mmap_mode="r").shape[1]))


class Served(NamedTuple):
    """What a child measured."""

    load_seconds: float
    prefill_speed: float
    """Tokens a second."""
    decode_speed: float | None
    """Tokens a second."""
    peak_memory_bytes: int
    """Of the process that served, before predictions were compared."""
    kl: float | None
    """Mean over positions of KL(source || engine), nats."""
    agreement: float | None
    """Share of positions with the source's most likely prediction, 0 to 1."""
    positions: int
    """How many were compared."""


class Session(Protocol):
    """A model that an engine has loaded."""

    def __init__(self, folder: Path, task: ServingTask) -> None:
        """Load the exported folder."""

    def fill(self, ids_T: np.ndarray) -> None:
        """Process a prompt in an empty cache and choose the likeliest next token."""

    def step(self) -> None:
        """Process the chosen token and choose the next."""

    def logits(self, ids_T: np.ndarray) -> np.ndarray:
        """Predictions at every position of a window, float32 [P, V], or of a classifier for the text, [1, V]."""
        raise NotImplementedError
