"""Training windows on disk: token ids, where documents begin, and which tokens are learned.

A folder with `tokens.bin` (little-endian int32 [S, T]), `flags.bin` (uint8 [S, T]) and `windows.json`; for labelled
texts, one a window, `labels.bin` (int32 [S]) too. The last windows are for validation.

Shapes: S windows, T tokens of a window, B windows of a batch.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from optcore.durable import write_settled
from optcore.errors import BadCheckpoint
from optcore.training.window_facts import WindowFacts

FACTS = "windows.json"
TOKENS, FLAGS, LABELS = "tokens.bin", "flags.bin", "labels.bin"
BEGINS = 1
"""Flag of a block's first token: nothing before it is attended to, and it is not predicted."""
LEARNED = 2
"""Flag of a token whose prediction counts."""


PADDING = 4
"""Flag of a place behind a text's end: nobody attends to it."""


class Batch(NamedTuple):
    """Windows in memory."""

    tokens_BT: torch.Tensor
    """int64."""
    flags_BT: torch.Tensor
    """uint8."""
    labels_B: torch.Tensor | None = None
    """Numbers of the true labels, int64; None where the text itself is learned."""

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        return Batch(*(None if part is None else part.to(device) for part in self))

    def first(self, count: int) -> "Batch":
        """Its first windows."""
        return Batch(*(None if part is None else part[:count] for part in self))

    @property
    def attended_BT(self) -> torch.Tensor:
        """Places that hold text, int64: 1 for them and 0 for padding."""
        return ((self.flags_BT & PADDING) == 0).long()

    @property
    def positions_BT(self) -> torch.Tensor:
        """Each token's place in its block: it starts at 0 again where a document begins."""
        places_BT = torch.arange(self.tokens_BT.shape[1], device=self.tokens_BT.device).expand_as(self.tokens_BT)
        begins_BT = torch.where((self.flags_BT & BEGINS).bool(), places_BT, 0)
        return places_BT - begins_BT.cummax(1).values

    @property
    def predicts_BT(self) -> torch.Tensor:
        """Positions of a causal model whose next token is learned, bool; none in the last column."""
        next_BT = self.flags_BT[:, 1:]
        counts_BT = (next_BT & LEARNED).bool() & ~(next_BT & BEGINS).bool()
        return torch.nn.functional.pad(counts_BT, (0, 1))

    @property
    def learned_BT(self) -> torch.Tensor:
        """Positions whose own token is learned, bool: what an encoder predicts."""
        return (self.flags_BT & LEARNED).bool()

    @property
    def next_BT(self) -> torch.Tensor:
        """The token behind each position; the first one of the window behind the last."""
        return self.tokens_BT.roll(-1, 1)


class WindowWriter:
    """Appends windows to a folder, from the first one: what a killed process left there goes."""

    def __init__(self, folder: Path, length: int) -> None:
        self.folder = folder
        self.length = length
        self.written = 0
        folder.mkdir(parents=True, exist_ok=True)
        for name in (TOKENS, FLAGS, LABELS):
            (folder / name).write_bytes(b"")

    def append(self, batch: Batch) -> None:
        """The next windows."""
        with (self.folder / TOKENS).open("ab") as tokens, (self.folder / FLAGS).open("ab") as flags:
            tokens.write(batch.tokens_BT.to(torch.int32).cpu().contiguous().numpy().tobytes())
            flags.write(batch.flags_BT.to(torch.uint8).cpu().contiguous().numpy().tobytes())
        if batch.labels_B is not None:
            with (self.folder / LABELS).open("ab") as labels:
                labels.write(batch.labels_B.to(torch.int32).numpy().tobytes())
        self.written += len(batch.tokens_BT)

    def finish(self, kind: str, validation: int, seed: int) -> WindowFacts:
        """Describe what was written, on disk too."""
        flags = (self.folder / FLAGS).read_bytes()
        learned = sum(flags.count(flag) for flag in range(256) if flag & LEARNED and not flag & BEGINS)
        learned = learned or (self.folder / LABELS).stat().st_size // 4
        facts = WindowFacts(
            kind=kind,
            windows=self.written,
            validation=validation,
            length=self.length,
            learned=learned,
            seed=seed,
            sha256=_sha256(self.folder / TOKENS, self.folder / FLAGS, self.folder / LABELS),
        )
        write_settled(self.folder / FACTS, facts.model_dump_json(indent=2) + "\n")
        return facts


class Windows:
    """Reads windows by number with plain reads: touched pages of a mapping would count as our memory."""

    def __init__(self, folder: Path) -> None:
        """Raises `BadCheckpoint` where the folder holds no windows, or a part of them."""
        self.folder = folder
        try:
            self.facts = WindowFacts.model_validate_json((folder / FACTS).read_text())
            sizes = [(folder / name).stat().st_size for name in (TOKENS, FLAGS)]
        except (OSError, ValueError) as error:
            raise BadCheckpoint(f"{folder.name} holds no training windows: {error}") from error
        if sizes != [4 * self.facts.tokens, self.facts.tokens]:
            raise BadCheckpoint(f"{folder.name} holds other windows than its {FACTS} says", remedy="prepare them again")

    def read(self, numbers: Sequence[int]) -> Batch:
        """Windows in the order given."""
        tokens = self._read(TOKENS, torch.int32, numbers).to(torch.int64)
        flags = self._read(FLAGS, torch.uint8, numbers)
        labels = self._read(LABELS, torch.int32, numbers, length=1).flatten().long() if self.is_labelled else None
        return Batch(tokens, flags, labels)

    @property
    def is_labelled(self) -> bool:
        """Whether each window is a text with a label."""
        return self.facts.kind == "labelled"

    def _read(self, name: str, dtype: torch.dtype, numbers: Sequence[int], length: int | None = None) -> torch.Tensor:
        length = length or self.facts.length
        size = length * dtype.itemsize
        with (self.folder / name).open("rb") as file:
            rows = [os.pread(file.fileno(), size, number * size) for number in numbers]
        return torch.frombuffer(bytearray(b"".join(rows)), dtype=dtype).view(len(rows), length)


def _sha256(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while part := file.read(2**20):
                digest.update(part)
    return digest.hexdigest()
