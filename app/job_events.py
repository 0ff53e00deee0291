"""What happens to jobs, read once for all who listen: one subscription, and one reader a job."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, Literal

import redis.asyncio

from workers.errors import ServiceError
from workers.messages import JobStatus, JobView, PreviewImage, Progress
from workers.queue.records import JOB_EVENTS, STATUSES

logger = logging.getLogger(__name__)

LISTEN_S = 30.0
MAX_BACKOFF_S = 1.0
MAX_EVENTS = 256  # kept of a job, as in its stream
_ENDS = frozenset(status.value for status in STATUSES.values() if status.is_terminal)


@dataclass(frozen=True)
class JobEvent:
    """Something that happened to a job. ``id`` tells ``JobFeed.follow`` where to go on.

    job: as it has ended, in the event that tells so.
    """

    id: str
    kind: Literal["status", "progress", "preview"]
    status: JobStatus
    progress: Progress | None = None
    preview: PreviewImage | None = None
    job: JobView | None = None

    @property
    def order(self) -> tuple[int, int]:
        """What tells earlier events from later ones."""
        return event_order(self.id)


def event_order(event_id: str) -> tuple[int, int]:
    """Return what tells earlier ids of events from later ones."""
    milliseconds, _, number = event_id.partition("-")
    return int(milliseconds), int(number)


@dataclass(eq=False)
class Watcher:
    """A caller that waits for events of one job."""

    only_end: bool
    has_news: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True)
class News:
    """What has happened to a job since it was last asked for, and in how many seconds to ask again."""

    events: Sequence[JobEvent]
    look_again_in_s: float


# (job id, id of the last event that is known or None) → what has happened since
ReadNews = Callable[[str, str | None], Awaitable[News]]


class JobFeed:
    """The events of one job, for as many listeners as there are; read while there is one."""

    def __init__(self) -> None:
        self.num_listeners = 0
        self.task: asyncio.Task[None] | None = None
        self._events: deque[JobEvent] = deque(maxlen=MAX_EVENTS)
        self._error: ServiceError | None = None
        self._changed = asyncio.Event()

    async def read(self, job_id: str, read_news: ReadNews, watcher: Watcher) -> None:
        """Read events until the job has ended, or can't be read."""
        clock = asyncio.get_running_loop().time
        last: str | None = None
        try:
            while True:
                watcher.has_news.clear()
                news = await read_news(job_id, last)
                for event in news.events:
                    last = event.id
                    self._add(event)
                if news.events and news.events[-1].status.is_terminal:
                    return
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(clock() + news.look_again_in_s):
                        await watcher.has_news.wait()
        except ServiceError as error:
            self._error = error
        finally:
            self._tell()

    async def follow(self, after: str | None) -> AsyncGenerator[JobEvent]:
        """Yield the events after one, or all that are known, until the job has ended.

        Raises: JobNotFound; QueueUnavailable.
        """
        at = (-1, -1) if after is None else event_order(after)
        while True:
            changed = self._changed
            news = [event for event in self._events if event.order > at]
            for event in news:
                at = event.order
                yield event
            if news:
                continue  # more may have happened meanwhile
            if self._events and self._events[-1].status.is_terminal:
                return
            if self._error is not None:
                raise self._error
            await changed.wait()

    def _add(self, event: JobEvent) -> None:
        if event.kind == "preview" or event.status.is_terminal:  # which make an older preview useless
            kept = [each for each in self._events if each.kind != "preview"]
            self._events = deque(kept, maxlen=MAX_EVENTS)
        self._events.append(event)
        self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class JobEventReader:
    """The one subscriber to the events of all jobs, from the first watcher on."""

    def __init__(self, connections: redis.asyncio.Redis, read_news: ReadNews) -> None:
        self._redis = connections
        self._read_news = read_news
        self._watchers: dict[str, set[Watcher]] = {}
        self._feeds: dict[str, JobFeed] = {}
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def watch(self, job_id: str, *, only_end: bool) -> Iterator[Watcher]:
        """Watch the events of a job; all watchers share one connection."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._read(), context=Context())  # of no request
        watcher = Watcher(only_end)
        self._watchers.setdefault(job_id, set()).add(watcher)
        try:
            yield watcher
        finally:
            watchers = self._watchers[job_id]
            watchers.discard(watcher)
            if not watchers:
                del self._watchers[job_id]

    @contextmanager
    def feed(self, job_id: str) -> Iterator[JobFeed]:
        """Listen to a job; all who do share one reader."""
        feed = self._feeds.get(job_id)
        if feed is None:
            feed = self._feeds[job_id] = JobFeed()
            feed.task = asyncio.create_task(self._keep_reading(job_id, feed))
        feed.num_listeners += 1
        try:
            yield feed
        finally:
            feed.num_listeners -= 1
            if not feed.num_listeners:
                del self._feeds[job_id]
                assert feed.task is not None
                feed.task.cancel()

    async def close(self) -> None:
        """Stop watching."""
        while self._task is not None and not self._task.done():
            self._task.cancel()  # which a client that connects at this moment may swallow
            await asyncio.wait({self._task}, timeout=0.1)

    async def _keep_reading(self, job_id: str, feed: JobFeed) -> None:
        with self.watch(job_id, only_end=False) as watcher:
            await feed.read(job_id, self._read_news, watcher)

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
