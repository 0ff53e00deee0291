"""Hold the queue, let it go on, and say what is to be in memory: for administrators."""

from typing import Literal

import redis.asyncio

from app.redis_connections import available
from workers.queue.records import NUM_ORDERS, ORDERS, PAUSED, now_text, wake_up_key

_MAX_WOKEN = 16  # workers at once; the others look for themselves within a second


class QueueControl:
    """Every method may raise QueueUnavailable, and changes nothing where it is so already."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._redis = client

    async def pause(self) -> None:
        """Let no worker begin a job until ``resume``, whatever starts again meanwhile; running ones go on."""
        async with available():
            await self._redis.set(PAUSED, now_text(), nx=True)

    async def order(self, pipeline: str, what: Literal["load", "unload"]) -> None:
        """Tell all workers, also those to come, to keep a pipeline in memory, or to let go of it."""
        async with available():
            number = await self._redis.incr(NUM_ORDERS)
            await self._redis.hset(ORDERS, pipeline, f"{what} {number}")

    async def resume(self) -> None:
        """Let workers begin jobs."""
        async with available(), self._redis.pipeline() as pipeline:
            pipeline.delete(PAUSED)
            pipeline.rpush(wake_up_key(), *[1] * _MAX_WOKEN)
            pipeline.ltrim(wake_up_key(), -_MAX_WOKEN, -1)
            await pipeline.execute()
