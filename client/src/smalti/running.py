"""The two ways to run the same conversation: blocking, and on an event loop.

All that is said to the service is written once, as coroutines. ``SyncIO`` does everything at once and never
suspends, so that ``run`` can drive a coroutine over it without an event loop or a thread.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Generator, Iterator
from typing import Any, Protocol, TypeVar

import httpx

from smalti.errors import ClientClosed

Answer = TypeVar("Answer")
Item = TypeVar("Item")


class IO(Protocol):
    """What a conversation needs from outside."""

    async def send(self, request: httpx.Request, *, stream: bool = False) -> httpx.Response:
        """Return the answer, read whole unless it is a stream."""
        ...

    def chunks(self, response: httpx.Response) -> AsyncIterator[bytes]:
        """Yield the body of a stream."""
        ...

    async def close(self, response: httpx.Response) -> None:
        """Leave a stream."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class SyncIO:
    """Blocks."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    async def send(self, request: httpx.Request, *, stream: bool = False) -> httpx.Response:
        if self._http.is_closed:
            raise ClientClosed
        return self._http.send(request, stream=stream)

    async def chunks(self, response: httpx.Response) -> AsyncIterator[bytes]:
        for chunk in response.iter_bytes():
            yield chunk

    async def close(self, response: httpx.Response) -> None:
        response.close()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class AsyncIO:
    """Suspends, on asyncio's event loop."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def send(self, request: httpx.Request, *, stream: bool = False) -> httpx.Response:
        if self._http.is_closed:
            raise ClientClosed
        return await self._http.send(request, stream=stream)

    async def chunks(self, response: httpx.Response) -> AsyncIterator[bytes]:
        async for chunk in response.aiter_bytes():
            yield chunk

    async def close(self, response: httpx.Response) -> None:
        await response.aclose()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def run(awaitable: Awaitable[Answer]) -> Answer:
    """Return what a coroutine over ``SyncIO`` returns."""
    steps: Generator[Any, None, Answer] = awaitable.__await__()
    try:
        next(steps)
    except StopIteration as end:
        answer: Answer = end.value
        return answer
    raise AssertionError("a coroutine over SyncIO suspended")


def iterate(items: AsyncGenerator[Item]) -> Iterator[Item]:
    """Yield what an asynchronous generator over ``SyncIO`` yields, and close it."""
    try:
        while True:
            try:
                yield run(items.__anext__())
            except StopAsyncIteration:
                return
    finally:
        run(items.aclose())
