"""What a folder with a speculative draft holds: `draft.json`, beside the files that engines read."""

from pathlib import Path
from typing import Literal

from optcore.documents import read_document
from optcore.frozen import Frozen
from optcore.techniques.draft import Method

DRAFT = "draft"
"""Folder of the draft below the model that it guesses for."""
DESCRIPTION = "draft.json"


class DraftDocument(Frozen):
    """A draft, as far as all methods have it in common."""

    version: Literal[1] = 1
    method: Method
    tokens: int
    """Drafted a round."""
    steps: int
    """It was trained for so many."""
    layout: str = ""
    """In which it is written, as `optcore.drafts.folder` names it; empty for a plain checkpoint and for none."""
    taps: tuple[int, ...] = ()
    """Layers of the target, from 0, whose outputs it reads."""
    has_mask_token: bool = False
    """Of `block`: its guesses stand for a token of the target, rather than for an embedding of their own."""

    def save(self, folder: Path) -> None:
        """Write it beside the draft's files."""
        (folder / DESCRIPTION).write_text(self.model_dump_json(indent=2) + "\n")


def load_draft_document(folder: Path) -> DraftDocument | None:
    """None for a folder without a draft. Raises `BadCheckpoint` for a document that is none."""
    return read_document(folder / DESCRIPTION, DraftDocument)
