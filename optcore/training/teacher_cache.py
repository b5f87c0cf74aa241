"""A teacher's top-k predictions for a fixed set of windows, on disk: it runs once, many epochs and students read.

A folder with `ids.bin` (little-endian uint16, or int32 for a vocabulary beyond 65536), `probabilities.bin` (float16)
and `cache.json`. Both files are plain arrays [S, T, k] as far as windows are written: S windows, T positions, k tokens.
Probabilities are stored as the teacher gave them; what they lack of 1 is the mass of all other tokens, so rounding them
to float16 moves mass to the rest and loses none.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field, ValidationError

from optcore.durable import flush, write_settled
from optcore.errors import BadCheckpoint, folder_error
from optcore.frozen import Frozen
from optcore.training.divergences import TopK
from optcore.training.plain_arrays import bytes_of, read_at, write_at

FACTS = "cache.json"
IDS = "ids.bin"
PROBABILITIES = "probabilities.bin"
_UINT16_tokens = 65536


class CacheFacts(Frozen):
    """What a cache holds."""

    version: Literal[1] = 1
    """Version of the files' form."""
    windows: int = Field(ge=0)
    """S: windows when it is whole."""
    length: int = Field(ge=1)
    """T: positions of a window, each with a prediction of the token behind it."""
    k: int = Field(ge=1)
    """Tokens kept for a position."""
    vocabulary: int = Field(ge=1)
    """Tokens that the teacher chooses from."""
    temperature: float = Field(default=1.0, gt=0)
    """What the teacher's logits were divided by."""

    @property
    def id_type(self) -> torch.dtype:
        """In which token ids are stored."""
        return torch.uint16 if self.vocabulary <= _UINT16_tokens else torch.int32

    @property
    def bytes_per_token(self) -> int:
        """On disk, for one position."""
        return self.k * (self.id_type.itemsize + torch.float16.itemsize)

    def window_bytes(self, dtype: torch.dtype) -> int:
        """One window's share of the file of that type."""
        return self.length * self.k * dtype.itemsize


class _Progress(Frozen):
    """The content of `cache.json`."""

    facts: CacheFacts
    written: int = Field(ge=0)
    """Windows whose bytes are on the disk."""


class CacheWriter:
    """Appends windows in order; after a kill, one on the same folder goes on behind the last whole window.

    Which teacher and windows these are, the folder does not say: the key of the stage that owns it does.
    """

    def __init__(self, folder: Path, facts: CacheFacts) -> None:
        """Raises `ValueError` where the folder holds another cache."""
        self.folder = folder
        self.facts = facts
        self._types = {IDS: facts.id_type, PROBABILITIES: torch.float16}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.written = self._whole()
            """Windows that need not be computed again."""
            self._files = {name: self._opened(name) for name in self._types}
        except OSError as error:
            raise folder_error(error) from error

    def append(self, top_k: TopK) -> None:
        """The next windows' rows [n * T, k]. They are on the disk, and counted, when it returns."""
        windows = self._checked(top_k.ids)
        probabilities = top_k.probabilities.to(torch.float16)
        if not probabilities.isfinite().all():
            raise BadCheckpoint("the teacher's predictions are not finite", field="/model")
        try:
            self._write(IDS, top_k.ids.to(self.facts.id_type))
            self._write(PROBABILITIES, probabilities)
            self._count(self.written + windows)
        except OSError as error:
            raise folder_error(error) from error

    def close(self) -> None:
        """Give the files back."""
        for file in self._files.values():
            os.close(file)
        self._files = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _checked(self, ids: torch.Tensor) -> int:
        """How many windows these are."""
        windows, over = divmod(len(ids), self.facts.length)
        if over or self.written + windows > self.facts.windows or ids.shape[-1] != self.facts.k:
            raise ValueError(f"rows {tuple(ids.shape)} are no windows that {self.facts} still lacks")
        if windows and int(ids.max()) >= self.facts.vocabulary:
            raise ValueError(f"token {int(ids.max())} is not in a vocabulary of {self.facts.vocabulary}")
        return windows

    def _whole(self) -> int:
        """Counted windows whose bytes are in both files: neither is taken at the other's word."""
        if not (self.folder / FACTS).exists():
            return 0
        progress = _progress(self.folder)
        if progress.facts != self.facts:
            raise ValueError(f"{self.folder.name} holds another cache: {progress.facts}, not {self.facts}")
        whole = [_size(self.folder / name) // self.facts.window_bytes(dtype) for name, dtype in self._types.items()]
        return min(progress.written, *whole)

    def _opened(self, name: str) -> int:
        """A file that ends behind the last whole window."""
        file = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT, 0o644)
        os.ftruncate(file, self._end(name))
        return file

    def _end(self, name: str) -> int:
        return self.written * self.facts.window_bytes(self._types[name])

    def _write(self, name: str, values: torch.Tensor) -> None:
        """Behind what is counted, whatever an append that failed left there."""
        write_at(self._files[name], self._end(name), values)
        os.fsync(self._files[name])

    def _count(self, written: int) -> None:
        """Last: what is counted must be there."""
        flush(self.folder)
        write_settled(self.folder / FACTS, _Progress(facts=self.facts, written=written).model_dump_json())
        self.written = written


class TeacherCache:
    """Reads windows with plain reads: touched pages of a mapping would count as this process's memory."""

    def __init__(self, folder: Path) -> None:
        """Raises `BadCheckpoint` where the folder holds no cache, or a damaged one."""
        progress = _progress(folder)
        self.folder = folder
        self.facts = progress.facts
        self.windows = progress.written
        """That can be read."""

    def rows(self, windows: Iterable[int]) -> TopK:
        """All positions of the windows, in the order given: ids int64 and probabilities float16, [n * T, k] each.

        Raises `IndexError` for a window that is not written, `BadCheckpoint` for a file that is cut.
        """
        chosen = list(windows)
        for window in chosen:
            if not 0 <= window < self.windows:
                raise IndexError(f"window {window} of {self.windows}")
        ids = self._read(IDS, self.facts.id_type, chosen).to(torch.int64)
        return TopK(ids, self._read(PROBABILITIES, torch.float16, chosen), self.facts.temperature)

    def _read(self, name: str, dtype: torch.dtype, windows: list[int]) -> torch.Tensor:
        size = self.facts.window_bytes(dtype)
        values = torch.empty((len(windows) * self.facts.length, self.facts.k), dtype=dtype)
        into = bytes_of(values)
        try:
            with (self.folder / name).open("rb", buffering=0) as file:
                for place, window in enumerate(windows):
                    read_at(file.fileno(), window * size, into[place * size : (place + 1) * size])
        except OSError as error:
            raise _damaged(self.folder, f"{name}: {error}") from error
        return values


def _progress(folder: Path) -> _Progress:
    try:
        return _Progress.model_validate_json((folder / FACTS).read_text())
    except (OSError, ValidationError) as error:
        raise _damaged(folder, f"{FACTS}: {error}") from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _damaged(folder: Path, why: str) -> BadCheckpoint:
    return BadCheckpoint(
        f"cannot read the teacher's predictions in {folder.name}: {why}", remedy="delete the folder and run again"
    )
