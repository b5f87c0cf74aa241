"""A TCP proxy that misbehaves on command: silence, resets, and answers cut off in the middle."""

import asyncio
import socket
import struct
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"


class Proxy:
    """Stands in front of one server. Use as a context; every method may be called from any thread."""

    def __init__(self, port: int) -> None:
        self.port = 0
        """Where it listens."""
        self._target = port
        self._loop = asyncio.new_event_loop()
        self._flow = asyncio.Event()
        self._cut_after: int | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._listen)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def pause(self) -> None:
        """Pass nothing on, in either direction; connections stay open and new ones are taken."""
        self._loop.call_soon_threadsafe(self._flow.clear)

    def resume(self) -> None:
        """Pass on what was held back."""
        self._loop.call_soon_threadsafe(self._flow.set)

    def reset(self) -> None:
        """End every connection with a RST."""
        self._loop.call_soon_threadsafe(self._reset)

    def cut_answer(self, after_bytes: int) -> None:
        """End the next connection whose server has answered so many bytes more: it was heard, and says nothing."""

        def arm() -> None:
            self._cut_after = after_bytes

        self._loop.call_soon_threadsafe(arm)

    def _call(self, step: Callable[[], Awaitable[None]]) -> None:
        async def run() -> None:
            await step()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    async def _listen(self) -> None:
        self._flow.set()
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        self._flow.set()
        self._reset()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_connection(HOST, self._target)
        except OSError:
            _rst(writer)
            return
        ends = {writer, to_server}
        self._writers |= ends
        there = asyncio.create_task(self._pump(reader, to_server, is_answer=False))
        back = asyncio.create_task(self._pump(from_server, writer, is_answer=True))
        await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
        there.cancel()
        back.cancel()
        for end in ends:
            end.close()
        self._writers -= ends

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool) -> None:
        try:
            while data := await reader.read(65536):
                await self._flow.wait()
                if is_answer and self._cut_after is not None:
                    self._cut_after -= len(data)
                    if self._cut_after <= 0:
                        self._cut_after = None
                        return _rst(writer)
                writer.write(data)
                await writer.drain()
        except OSError:
            return

    def _reset(self) -> None:
        for writer in list(self._writers):
            _rst(writer)


def _rst(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    if raw is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
