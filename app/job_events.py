"""Wake the callers that wait for something to happen to a job, from one connection to Redis."""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import redis.asyncio

from workers.queue.records import JOB_EVENTS, STATUSES

logger = logging.getLogger(__name__)

LISTEN_S = 30.0
MAX_BACKOFF_S = 1.0
_ENDS = frozenset(status.value for status in STATUSES.values() if status.is_terminal)


@dataclass(eq=False)
class Watcher:
    """A caller that waits for events of one job."""

    only_end: bool
    has_news: asyncio.Event = field(default_factory=asyncio.Event)


class JobEventReader:
    """The one subscriber to the events of all jobs, from the first watcher on."""

    def __init__(self, connections: redis.asyncio.Redis) -> None:
        self._redis = connections
        self._watchers: dict[str, set[Watcher]] = {}
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def watch(self, job_id: str, *, only_end: bool) -> Iterator[Watcher]:
        """Watch the events of a job; all watchers share one connection."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._read())
        watcher = Watcher(only_end)
        self._watchers.setdefault(job_id, set()).add(watcher)
        try:
            yield watcher
        finally:
            watchers = self._watchers[job_id]
            watchers.discard(watcher)
            if not watchers:
                del self._watchers[job_id]

    async def close(self) -> None:
        """Stop watching."""
        while self._task is not None and not self._task.done():
            self._task.cancel()  # which a client that connects at this moment may swallow
            await asyncio.wait({self._task}, timeout=0.1)

    async def _read(self) -> None:
        backoff_s = 0.02
        while True:
            try:
                async with self._redis.pubsub() as channel:
                    await channel.subscribe(JOB_EVENTS)
                    while True:
                        message = await channel.get_message(timeout=LISTEN_S)
                        backoff_s = 0.02
                        if message is not None:
                            self._tell(message)
            except (redis.RedisError, OSError) as error:
                logger.warning("can't listen to the queue server: %s", type(error).__name__)
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    def _tell(self, message: Mapping[str, Any]) -> None:
        if message["type"] == "subscribe":  # what happened before was missed
            for watchers in self._watchers.values():
                for watcher in watchers:
                    watcher.has_news.set()
            return
        job_id, _, event = message["data"].partition(" ")
        for watcher in self._watchers.get(job_id, ()):
            if event in _ENDS or not watcher.only_end:
                watcher.has_news.set()
