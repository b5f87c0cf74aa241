"""Copies of artifacts on this host's disk, on their way into a store elsewhere or out of it.

What a killed worker left here is removed by the next one that has something to put here.
"""

import logging
import re
import shutil
from pathlib import Path
from typing import Literal

from api.store import jobs
from api.store.models import ACTIVE, Job
from api.store.session import Sessions

log = logging.getLogger(__name__)

Kind = Literal["output", "push"]

_NAME = re.compile(r"(\w+)-(\d+)-(output|push)")


class Staging:
    """`<root>/<job_id>-<epoch>-output`, written by an engine, and `-push`, put together for the Hub."""

    def __init__(self, root: Path, sessions: Sessions) -> None:
        self._root = root
        self._sessions = sessions

    def place(self, job_id: str, epoch: int, kind: Kind) -> Path:
        """The folder of one claim."""
        return self._root / f"{job_id}-{epoch}-{kind}"

    def clear(self, place: Path) -> None:
        """Remove a folder, and what an engine left beside it half-written."""
        for path in self._root.glob(f"{place.name}*"):
            shutil.rmtree(path, ignore_errors=True)

    def sweep(self) -> int:
        """Remove what no claim can want any more; how many folders."""
        return sum(self._remove(path) for path in self._root.glob("*-*") if not self._is_wanted(path))

    def _is_wanted(self, path: Path) -> bool:
        match = _NAME.match(path.name)
        if match is None:
            return True
        with self._sessions() as session:
            job = jobs.find(session, match[1])
        return job is not None and _is_held(job, int(match[2]), match[3])

    def _remove(self, path: Path) -> bool:
        log.info("removing what a lost worker left: %s", path.name)
        shutil.rmtree(path, ignore_errors=True)
        return not path.exists()


def _is_held(job: Job, epoch: int, kind: str) -> bool:
    """Whether a worker holds the job, or its push, under this epoch."""
    if kind == "output":
        return job.status in ACTIVE and job.epoch == epoch
    return job.publish_status == "uploading" and job.publish_epoch == epoch
