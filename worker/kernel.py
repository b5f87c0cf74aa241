"""What the kernel counts beside us: processes that it killed because memory ran out."""

import time
from pathlib import Path

from worker import cgroup

LOOK_seconds = 5.0


class OomCounter:
    """Tells a recent kill from an old one: a run lasts hours, and others on the machine run out of memory too."""

    def __init__(self) -> None:
        now = _oom_kills()
        self._older, self._newer, self._looked = now, now, time.monotonic()

    def look(self) -> None:
        """To be called often; keeps the counts of the last two looks."""
        if time.monotonic() >= self._looked + LOOK_seconds:
            self._older, self._newer, self._looked = self._newer, _oom_kills(), time.monotonic()

    @property
    def has_risen(self) -> bool:
        """Whether there was a kill within the last moments."""
        return _oom_kills() > self._older


def _oom_kills() -> int:
    """In our own group, which is our container's; where nobody counts that, on the machine."""
    own = cgroup.own_folder()
    counted = cgroup.oom_kills(own) if own else None
    if counted is not None:
        return counted
    lines = Path("/proc/vmstat").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
