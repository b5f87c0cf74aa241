"""The work folder: finished stages by content key, shared by every run on the machine."""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optcore.durable import settle
from optcore.stage import StageRecord

_RECORD = "record.json"
JOURNAL = "journal"
"""Below a stage's folder: what it has finished, for the process that goes on after a kill."""


class WorkFolder:
    """`stages/<key>/` holds a finished stage's `files/` and `record.json`; nothing else is ever read back.

    A stage is written under a temporary name and renamed when it is complete. What a killed process leaves is only ever
    seen by the next holder of the key's lock.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.sources = self.root / "sources"
        self._stages = self.root / "stages"
        self._stages.mkdir(parents=True, exist_ok=True)

    def files(self, key: str) -> Path:
        """The folder of a finished stage's files."""
        return self._stages / key / "files"

    def record(self, key: str) -> StageRecord | None:
        """What a finished stage left; None when it was not run yet, or when its files are not what it left any more."""
        path = self._stages / key / _RECORD
        if not path.exists():
            return None
        record = StageRecord.model_validate_json(path.read_text())
        if record.files != _facts(self.files(key)):
            return None
        os.utime(path)  # its last use, which `forget` goes by
        return record

    def forget(self, *, unused_seconds: float, keep_bytes: int = 0) -> int:
        """Delete stages that no run used for so long, then the longest unused ones above `keep_bytes` (0: no limit).

        The bytes that were freed. Call it while no run is at work here: a run reads a stage without holding its key.
        """
        stages = sorted(self._uses(), key=lambda use: use[1])
        total, oldest = sum(size for _, _, size in stages), time.time() - unused_seconds
        freed = 0
        for path, used_at, size in stages:
            if used_at < oldest or (keep_bytes and total - freed > keep_bytes):
                shutil.rmtree(path, ignore_errors=True)
                freed += size
        return freed

    def held_bytes(self) -> int:
        """What all stages take, finished or begun; linked files too. Others may write and delete here meanwhile."""
        files = (Path(folder, name) for folder, _, names in os.walk(self._stages) for name in names)
        return sum(map(_size, files))

    def _uses(self) -> Iterator[tuple[Path, float, int]]:
        """Stages, finished or begun: folder, last use in seconds since 1970, bytes (of linked files too)."""
        for path in self._stages.iterdir():
            if path.is_dir():
                marker = path / _RECORD if (path / _RECORD).exists() else path
                yield path, marker.stat().st_mtime, sum(size for size, _ in _facts(path).values())

    @contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Hold a key: a second run that wants the same stage waits, then finds it done."""
        with (self._stages / f"{key}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def begin(self, key: str) -> Path:
        """A folder to build the stage in. What a killed process left is kept where it kept a journal, else removed."""
        part = self._stages / f"{key}.part"
        if not any((part / JOURNAL).glob("**/*.json")):
            shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(part / "scratch", ignore_errors=True)
        for name in ("files", "scratch", JOURNAL):
            (part / name).mkdir(parents=True, exist_ok=True)
        return part

    def commit(self, part: Path, record: StageRecord) -> None:
        """Make a stage visible: its record last, its bytes on the disk before its name."""
        shutil.rmtree(part / "scratch", ignore_errors=True)
        record = record.model_copy(update={"files": _facts(part / "files")})
        (part / _RECORD).write_text(record.model_dump_json(indent=2) + "\n")
        stage = self._stages / record.key
        shutil.rmtree(stage, ignore_errors=True)  # a fetch that is looked up again, or one whose files changed
        settle(part, stage)
        shutil.rmtree(stage / JOURNAL, ignore_errors=True)  # not before: a process killed here goes on with it


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def _facts(folder: Path) -> dict[str, tuple[int, int]]:
    facts = {str(path.relative_to(folder)): path.stat() for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: (fact.st_size, fact.st_mtime_ns) for name, fact in facts.items()}
