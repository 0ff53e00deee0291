"""Connections of the front end to the queue server."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis.asyncio
from redis.asyncio.retry import Retry

from workers.errors import QueueUnavailable

logger = logging.getLogger(__name__)


def connect(redis_url: str, max_connections: int, retry: Retry) -> redis.asyncio.Redis:
    """Return a client that opens so many connections at most, one for each caller at a time."""
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        redis_url,
        max_connections=max_connections,
        timeout=5,
        decode_responses=True,
        socket_timeout=5,
        socket_connect_timeout=1,
        retry=retry,
        retry_on_error=[redis.ReadOnlyError],  # what was the master before a failover
    )
    return redis.asyncio.Redis.from_pool(pool)


async def disconnect(connections: redis.asyncio.Redis) -> None:
    """Close all connections of a client."""
    await connections.aclose()
    await connections.connection_pool.disconnect()


@asynccontextmanager
async def available() -> AsyncIterator[None]:
    """Use the queue server; what goes wrong with it is raised as QueueUnavailable."""
    try:
        yield
    except (redis.RedisError, TimeoutError, OSError) as error:
        logger.warning("the queue server does not answer: %s", type(error).__name__)
        raise QueueUnavailable("the queue does not answer; try again soon") from error
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        # redis-py's asyncio.wait_for may have swallowed it: python/cpython#86296, until Python 3.12.
        raise asyncio.CancelledError
