"""The files of a job, for the async client."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from lathe._protocol import artifacts as protocol
from lathe._transfer import Transfer
from lathe._wire import AsyncWire
from lathe.display.watching import OnBytes, bytes_shown
from lathe.errors import LatheError
from lathe.job import StrPath
from lathe.models import Artifact


class AsyncArtifacts:
    """The files of a finished job."""

    def __init__(self, wire: AsyncWire) -> None:
        self._wire = wire

    def list(self, job_id: str) -> AsyncIterator[Artifact]:
        """Every file with its size and SHA-256."""
        return self._wire.each(lambda params: protocol.list_artifacts(job_id, params), {})

    async def download(
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
        transfers = [Transfer(Path(folder), artifact) async for artifact in self.list(job_id)]
        with bytes_shown([transfer.artifact for transfer in transfers], progress, on_progress) as tell:
            return tuple([await self._fetch(job_id, transfer, tell) for transfer in transfers])

    async def _fetch(self, job_id: str, transfer: Transfer, tell: OnBytes) -> Path:
        if await asyncio.to_thread(transfer.is_here):
            tell(transfer.artifact, transfer.artifact.bytes)
            return transfer.target
        while True:
            try:
                if not transfer.is_complete():
                    await self._receive(job_id, transfer, tell)
                return await asyncio.to_thread(transfer.commit)
            except LatheError as error:
                if (delay := transfer.retry_delay(error, self._wire.retry)) is None:
                    raise
            await asyncio.sleep(delay)

    async def _receive(self, job_id: str, transfer: Transfer, tell: OnBytes) -> None:
        call = protocol.get_artifact(job_id, transfer.artifact.path, transfer.offset())
        async with self._wire.stream(call) as response:
            with transfer.receiving(response):
                tell(transfer.artifact, transfer.received_bytes)  # what an earlier call left here
                async for block in response.aiter_raw():
                    transfer.write(block)
                    tell(transfer.artifact, transfer.received_bytes)
