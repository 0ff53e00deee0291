"""Hold the queue, and let it go on: for administrators."""

import redis.asyncio

from app.redis_connections import available
from workers.queue.records import PAUSED, now_text, wake_up_key

_MAX_WOKEN = 16  # workers at once; the others look for themselves within a second


class QueueControl:
    """Both methods may raise QueueUnavailable, and change nothing where it is so already."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._redis = client

    async def pause(self) -> None:
        """Let no worker begin a job until ``resume``, whatever starts again meanwhile; running ones go on."""
        async with available():
            await self._redis.set(PAUSED, now_text(), nx=True)

    async def resume(self) -> None:
        """Let workers begin jobs."""
        async with available(), self._redis.pipeline() as pipeline:
            pipeline.delete(PAUSED)
            pipeline.rpush(wake_up_key(), *[1] * _MAX_WOKEN)
            pipeline.ltrim(wake_up_key(), -_MAX_WOKEN, -1)
            await pipeline.execute()
