"""Events of a job on their way to one client, with signs of life between them."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from app.job_events import JobEvent
from app.services import Services
from workers.errors import ServiceError

KEEP_ALIVE_S = 15.0  # proxies close a silent connection, often after 30 or 60 seconds
MAX_UNSENT = 16  # events; a client that reads slower misses previews
KEEP_ALIVE = ": \n\n"
EVENT_STREAM = "text/event-stream"
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


async def with_signs_of_life(
    events: AsyncGenerator[JobEvent], services: Services
) -> AsyncGenerator[JobEvent | None]:
    """Yield events, and None where there was none for a while.

    Ends early where the queue server or this process goes away.
    """
    unsent: asyncio.Queue[JobEvent | None] = asyncio.Queue(MAX_UNSENT)
    tasks = [
        asyncio.create_task(_follow(events, unsent)),
        asyncio.create_task(_wait_for_end(services, unsent)),
    ]
    try:
        while True:
            try:
                async with asyncio.timeout(KEEP_ALIVE_S):
                    event = await unsent.get()
            except TimeoutError:
                yield None
                continue
            if event is None:
                return
            yield event
    finally:
        for task in tasks:
            task.cancel()


async def _follow(events: AsyncGenerator[JobEvent], unsent: asyncio.Queue[JobEvent | None]) -> None:
    """Pass events on, in a task of its own: when it is cancelled, the generator is surely closed."""
    try:
        async with aclosing(events):
            async for event in events:
                await unsent.put(event)
    except ServiceError:
        pass  # the client connects again, and hears of it
    await unsent.put(None)


async def _wait_for_end(services: Services, unsent: asyncio.Queue[JobEvent | None]) -> None:
    await services.is_ending.wait()
    await unsent.put(None)
