"""What training windows are: of the stage that made them, and of the artifact that was made with them. No torch."""

from typing import Literal

from pydantic import Field

from optcore.frozen import Frozen


class WindowFacts(Frozen):
    """What a folder of windows holds; in the stage's record and the artifact's manifest too."""

    version: Literal[1] = 1
    kind: str
    """Where they come from: `text`, `chat`, `labelled`, `generated`, `answers` or `random`."""
    windows: int = Field(ge=1)
    validation: int = Field(ge=0)
    """How many of them, the last ones, are not trained on."""
    length: int
    """Tokens a window."""
    learned: int
    """Tokens whose prediction counts; of labelled texts, the texts."""
    seed: int
    sha256: str
    """Of both files."""

    @property
    def training(self) -> int:
        """Windows to train on."""
        return self.windows - self.validation

    @property
    def tokens(self) -> int:
        """All of them, frames included."""
        return self.windows * self.length
