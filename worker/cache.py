"""The caches of finished stages on this host, one a project: in use while an engine runs, swept while none does."""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optcore.work import WorkFolder
from worker.settings import WorkerSettings

log = logging.getLogger(__name__)

DAY_seconds = 24 * 3600


@contextmanager
def in_use(work: Path) -> Iterator[None]:
    """Keep the sweep of every worker on this host away from a folder."""
    with _lock_file(work).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def sweep(settings: WorkerSettings) -> int:
    """Delete what was not used for long, or is too much, where no engine runs now. The bytes that were freed."""
    freed = 0
    for work in settings.works_dir.glob("*/"):
        with _lock_file(work).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            freed += WorkFolder(work).forget(
                unused_seconds=settings.cache_days * DAY_seconds, keep_bytes=settings.cache_bytes
            )
    if freed:
        log.info("cached stages deleted: %d bytes", freed)
    return freed


def _lock_file(work: Path) -> Path:
    return work.with_name(f"{work.name}.lock")
