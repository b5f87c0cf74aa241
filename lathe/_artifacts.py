"""The files of a job, for the sync client."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lathe._protocol import artifacts as protocol
from lathe._transfer import Transfer
from lathe._wire import Wire
from lathe.display.watching import OnBytes, bytes_shown
from lathe.errors import LatheError
from lathe.job import StrPath
from lathe.models import Artifact


class Artifacts:
    """The files of a finished job."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def list(self, job_id: str) -> Iterator[Artifact]:
        """Every file with its size and SHA-256."""
        return self._wire.each(lambda params: protocol.list_artifacts(job_id, params), {})

    def download(
        self,
        job_id: str,
        folder: StrPath,
        *,
        on_progress: Callable[[Artifact, int], None] | None = None,
        progress: bool = False,
    ) -> tuple[Path, ...]:
        """Fetch every file into `folder`: resumed where it was interrupted, checked by SHA-256, renamed into place.

        `on_progress` gets the file and the bytes of it that are here, first those that an earlier call left; with
        `progress` a bar is shown. Raises `UnsafePath` or `DigestMismatch`; nothing with wrong bytes ever has its final
        name.
        """
        transfers = [Transfer(Path(folder), artifact) for artifact in self.list(job_id)]
        with bytes_shown([transfer.artifact for transfer in transfers], progress, on_progress) as tell:
            return tuple([self._fetch(job_id, transfer, tell) for transfer in transfers])

    def _fetch(self, job_id: str, transfer: Transfer, tell: OnBytes) -> Path:
        if transfer.is_here():
            tell(transfer.artifact, transfer.artifact.bytes)
            return transfer.target
        while True:
            try:
                if not transfer.is_complete():
                    self._receive(job_id, transfer, tell)
                return transfer.commit()
            except LatheError as error:
                if (delay := transfer.retry_delay(error, self._wire.retry)) is None:
                    raise
            time.sleep(delay)

    def _receive(self, job_id: str, transfer: Transfer, tell: OnBytes) -> None:
        call = protocol.get_artifact(job_id, transfer.artifact.path, transfer.offset())
        with self._wire.stream(call) as response, transfer.receiving(response):
            tell(transfer.artifact, transfer.received_bytes)  # what an earlier call left here
            for block in response.iter_raw():
                transfer.write(block)
                tell(transfer.artifact, transfer.received_bytes)
