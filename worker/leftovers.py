"""Output folders of attempts that lost their claim: never registered, so nobody can read them, so they may go."""

import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from api.store import jobs
from api.store.models import Job
from api.store.session import Sessions
from lathe.models import TERMINAL
from worker.settings import WorkerSettings

log = logging.getLogger(__name__)

_EPOCH = re.compile(r"^\.?(\d+)(?!\d)")


class Leftovers:
    """Sweeps `artifacts/<job>/<epoch>`. A folder whose job the database does not know is left: it may be another's."""

    def __init__(self, settings: WorkerSettings, sessions: Sessions) -> None:
        self._root = settings.artifacts_dir
        self._sessions = sessions
        self._settled: set[str] = set()

    def sweep(self) -> int:
        """Remove what can go; how many folders."""
        removed = 0
        for folder in self._unsettled():
            with self._sessions() as session:
                job = jobs.find(session, folder.name)
            if job is None:
                continue
            removed += sum(_remove(attempt) for attempt in _dead_attempts(folder, job))
            if job.status in TERMINAL:
                self._settled.add(job.id)
        return removed

    def _unsettled(self) -> Iterator[Path]:
        if self._root.is_dir():
            yield from (path for path in self._root.iterdir() if path.is_dir() and path.name not in self._settled)


def _dead_attempts(folder: Path, job: Job) -> list[Path]:
    """Folders of epochs before the job's own, and of its own when it ended without a result."""
    kept_epoch = None if job.status in ("failed", "cancelled") else job.epoch
    found = []
    for path in folder.iterdir():
        match = _EPOCH.match(path.name)
        if match and int(match[1]) <= job.epoch and int(match[1]) != kept_epoch:
            found.append(path)
    return found


def _remove(path: Path) -> bool:
    log.info("removing the output of a lost attempt: %s/%s", path.parent.name, path.name)
    shutil.rmtree(path, ignore_errors=True)
    return not path.exists()
