"""Decoding of files that come in, in processes of their own, within bounds over all requests."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from app.errors import TooBusy
from models.media.base import Array, InvalidMedia
from models.media.isolated import IsolatedProcess, Limits

_MAX_ANNOUNCED_BYTES = 8 * 2**30  # waiting or being decoded: some 64 of the largest pictures, 20 s of work
_MAX_DECODED_BYTES = 300 * 2**20  # at a time; a file that takes more is decoded alone
_SMALL_BYTES = 32 * 2**20  # 4 to 6 million pixels: these don't wait for larger ones
_NUM_PROCESSES = {"small": 1, "large": 2}
_IDLE_S = {"small": 60.0, "large": 2.0}  # until a process without work ends, and gives its memory back
_LIMITS = Limits(niceness=10)  # so that the API itself stays quick
_KILL_EVERY_S = 0.05


class Decoders:
    """The processes that decode what clients send; they are started when they are needed."""

    def __init__(self) -> None:
        self._announced_bytes = 0
        self._room = _Room(_MAX_DECODED_BYTES)
        self._free = {lane: asyncio.Semaphore(number) for lane, number in _NUM_PROCESSES.items()}
        self._idle = {
            lane: [IsolatedProcess(_LIMITS) for _ in range(number)] for lane, number in _NUM_PROCESSES.items()
        }
        self._endings: dict[IsolatedProcess, asyncio.TimerHandle] = {}
        self._processes = [process for each in self._idle.values() for process in each]
        self._threads = ThreadPoolExecutor(len(self._processes), "decode")

    @contextlib.contextmanager
    def admitted(self, num_bytes: int) -> Iterator[None]:
        """Count what the files of a request announce, as long as they wait or are being decoded.

        Raises: TooBusy when that is too much on top of what there is already.
        """
        if self._announced_bytes and self._announced_bytes + num_bytes > _MAX_ANNOUNCED_BYTES:
            raise TooBusy("too many large files wait to be decoded; try again soon")
        self._announced_bytes += num_bytes
        try:
            yield
        finally:
            self._announced_bytes -= num_bytes

    async def decode(self, num_bytes: int, function: Callable[..., Array], *arguments: Any) -> Array:
        """Call a function that decodes a file, in one of the processes, and return what it returns.

        num_bytes: about how much memory it takes. Cancelling ends the process, and so the decoding, at once.

        Raises: InvalidMedia, also when the file takes too much time or memory, or crashes its decoder.
        """
        lane = "small" if num_bytes <= _SMALL_BYTES else "large"
        async with self._free[lane], self._room.taken(num_bytes if lane == "large" else 0):
            process = self._idle[lane].pop()
            if process in self._endings:
                self._endings.pop(process).cancel()
            try:
                result = await self._result(process, function, arguments)
            finally:
                self._idle[lane].append(process)
                loop = asyncio.get_running_loop()
                self._endings[process] = loop.call_later(_IDLE_S[lane], process.stop)
        if isinstance(result, InvalidMedia):
            raise result
        return result

    def close(self) -> None:
        """End the processes."""
        for ending in self._endings.values():
            ending.cancel()
        for process in self._processes:
            process.end()
        self._threads.shutdown()

    async def _result(
        self, process: IsolatedProcess, function: Callable[..., Array], arguments: tuple[Any, ...]
    ) -> Array | InvalidMedia:
        def only_result() -> Array | InvalidMedia:
            (result,) = process.results([(function, arguments)])
            return result

        result = asyncio.get_running_loop().run_in_executor(self._threads, only_result)
        try:
            return await asyncio.shield(result)
        except asyncio.CancelledError:
            while not result.done():  # again, if it was only being started
                process.kill()
                await asyncio.wait([result], timeout=_KILL_EVERY_S)
            result.exception()  # which nobody waits for any more
            raise


class _Room:
    """So many bytes at a time; what takes more than all of them is let in alone."""

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes
        self._taken = 0
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def taken(self, num_bytes: int) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(
                lambda: not self._taken or self._taken + num_bytes <= self._num_bytes
            )
            self._taken += num_bytes
        try:
            yield
        finally:
            self._taken -= num_bytes
            await asyncio.shield(self._tell())

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()
