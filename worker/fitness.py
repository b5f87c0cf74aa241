"""Whether this machine should take a job now: room on its disk, GPUs that are well. In doubt it takes none."""

import logging
import shutil
import threading
import time
from collections.abc import Sequence

from optcore.errors import OptError
from optcore.signing import check_key
from worker import gpus
from worker.gpus import Gpu, GpusUnknown
from worker.settings import WorkerSettings

log = logging.getLogger(__name__)

LOOK_seconds = 10.0
"""An idle worker asks each second; the driver's tool takes up to seconds to answer."""


class Fitness:
    """Looks when asked, and remembers the answer for a while."""

    def __init__(self, settings: WorkerSettings, cards: Sequence[Gpu]) -> None:
        self._settings = settings
        self._cards = {card.uuid for card in cards}
        self._locks = gpus.locks(settings.gpu_lock_dir, cards)
        self._trouble: str | None = None
        self._looked = -LOOK_seconds
        self._looking = threading.Lock()

    def trouble(self) -> str | None:
        """Why this machine takes no job; None when it does. A change is logged."""
        with self._looking:
            if time.monotonic() >= self._looked + LOOK_seconds:
                found = self._disk() or self._key() or self._gpus()
                if found != self._trouble:
                    log.warning("this worker takes no job: %s", found or "but now it does again")
                self._trouble, self._looked = found, time.monotonic()
            return self._trouble

    def orphan(self) -> str | None:
        """Which GPU an engine holds that is none of ours, to be asked while we run none."""
        try:
            held = next((lock.stem for lock in self._locks if gpus.is_held(lock)), None)
        except OSError as error:
            return f"LATHE_GPU_LOCK_DIR cannot be used: {error}"
        return held and f"another engine holds {held}"

    def _disk(self) -> str | None:
        try:
            self._settings.data_dir.mkdir(parents=True, exist_ok=True)
            free, least = shutil.disk_usage(self._settings.data_dir).free, self._settings.min_free_bytes
        except OSError as error:
            return f"LATHE_DATA_DIR cannot be used: {error}"
        return f"{free} bytes free below LATHE_DATA_DIR, at least {least} are wanted" if free < least else None

    def _key(self) -> str | None:
        """A job that nobody could sign at its end is not begun."""
        try:
            if self._settings.signing_key:
                check_key(self._settings.signing_key)
        except OptError as error:
            return f"LATHE_SIGNING_KEY cannot be used: {error}"
        return None

    def _gpus(self) -> str | None:
        try:
            found = gpus.visible()
        except GpusUnknown as error:
            return str(error)
        if {card.uuid for card in found} != self._cards:
            return "the GPUs are others than when this worker started: restart it"
        return next((f"GPU {card.uuid}: {card.trouble}" for card in found if card.trouble), None)
