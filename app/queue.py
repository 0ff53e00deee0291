"""Submit, look up, wait for and cancel jobs: the front end's only user of RQ and Redis."""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import uuid4

import redis.asyncio
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from workers import transitions
from workers.errors import JobNotFound, QueueFull, QueueUnavailable
from workers.messages import JobStatus, JobView, PreviewImage, Progress, Request
from workers.protocol import (
    ALONE,
    NEWS,
    PACE,
    QUEUES,
    STATUSES,
    TOTALS,
    VIEW_FIELDS,
    WORKERS,
    events_key,
    job_fields,
    job_key,
    job_view,
    now_text,
    queue_key,
    result_key,
)

logger = logging.getLogger(__name__)

CHECK_TIMEOUT_S = 1.0
LISTEN_S = 30.0
MAX_BACKOFF_S = 1.0
MAX_CONNECTIONS = 64
_EVENT_ID = re.compile(r"\d{1,20}-\d{1,20}")
_ENDS = frozenset(status.value for status in STATUSES.values() if status.is_terminal)


@dataclass(frozen=True)
class QueueHealth:
    """Who would work on a job now."""

    num_ready_workers: int
    num_draining_workers: int
    queue_length: int


@dataclass(frozen=True)
class WorkerGauges:
    """A worker as it was at its last sign of life."""

    name: str
    phase: str
    num_running_images: int
    memory_bytes: int
    device_memory_bytes: int


@dataclass(frozen=True)
class QueueMetrics:
    """What is to be told of the queue and its workers; ``totals`` are the sums of ``workers.metrics``."""

    totals: Mapping[str, float]
    lengths: Mapping[str, int]
    workers: Sequence[WorkerGauges]


@dataclass(frozen=True)
class JobEvent:
    """Something that happened to a job. ``id`` tells ``events`` where to go on."""

    id: str
    kind: Literal["status", "progress", "preview"]
    status: JobStatus
    progress: Progress | None = None
    preview: PreviewImage | None = None


@dataclass(eq=False)
class _Watcher:
    """Somebody who waits for news of one job."""

    only_end: bool
    news: asyncio.Event = field(default_factory=asyncio.Event)


class JobQueue:
    """The queue as the front end sees it. Every method may raise QueueUnavailable."""

    def __init__(self, redis_url: str, *, max_length: int, result_ttl_s: int) -> None:
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            redis_url,
            max_connections=MAX_CONNECTIONS,
            timeout=5,
            decode_responses=True,
            socket_timeout=5,
            socket_connect_timeout=1,
            retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), 3),  # every command here may be sent twice
        )
        self._redis: redis.asyncio.Redis = redis.asyncio.Redis.from_pool(pool)
        self._max_length = max_length
        self._result_ttl_s = result_ttl_s
        self._submit = self._redis.register_script(transitions.SUBMIT)
        self._cancel = self._redis.register_script(transitions.CANCEL)
        self._end_overdue = self._redis.register_script(transitions.END_OVERDUE)
        self._watchers: dict[str, set[_Watcher]] = {}
        self._reader: asyncio.Task[None] | None = None

    async def submit(self, request: Request) -> JobView:
        """Put a job in the queue; the request must name all that a result depends on.

        Raises: QueueFull.
        """
        job_id = uuid4().hex
        fields = job_fields(request, result_ttl_s=self._result_ttl_s)
        deadline_s = "" if request.deadline_s is None else request.deadline_s
        flat = [part for item in fields.items() for part in item]
        async with self._available():
            accepted, num_waiting = await self._submit(
                args=[job_id, request.priority, self._max_length, deadline_s, *flat]
            )
            if not accepted:
                pace_s = _pace_s(await self._redis.hgetall(PACE))
                raise QueueFull(
                    f"{num_waiting} jobs wait, which is the most that may",
                    retry_after_s=min(60.0, max(1.0, pace_s * num_waiting / 10)),
                )
        view = job_view(job_id, {name: str(value) for name, value in fields.items()})
        return view.model_copy(update={"queue_position": num_waiting})

    async def get(self, job_id: str) -> JobView:
        """Return the job as it is now.

        Raises: JobNotFound.
        """
        async with self._available():
            job, value, clock = await self._read(job_id)
            if job.get("status") == "queued" and float(job.get("deadline_at", "inf")) <= clock:
                await self._end_overdue(args=[now_text()])  # no worker may be there to do it
                job, value, clock = await self._read(job_id)
            try:
                view = job_view(job_id, job, value)
            except KeyError:
                raise JobNotFound(f"there is no job {job_id}, or its result has expired") from None
            if view.status == JobStatus.QUEUED:
                return await self._with_position(view, job["origin"])
        if view.status == JobStatus.RUNNING and view.progress and view.progress.step:
            ran_s, progress = clock - float(job["claimed_at"]), view.progress
            left_s = ran_s * (progress.total - progress.step) / progress.step
            return view.model_copy(update={"seconds_left": round(left_s, 3)})
        return view

    async def wait(self, job_id: str, timeout_s: float) -> JobView:
        """Return the job when it has ended, or as it is when the time is up.

        Raises: JobNotFound.
        """
        clock = asyncio.get_running_loop().time
        give_up_at = clock() + timeout_s
        with self._watch(job_id, only_end=True) as watcher:
            while True:
                watcher.news.clear()
                try:
                    view = await self.get(job_id)
                except QueueUnavailable:
                    if clock() >= give_up_at:
                        raise
                else:
                    if view.status.is_terminal or clock() >= give_up_at:
                        return view
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(give_up_at):
                        await watcher.news.wait()

    async def events(self, job_id: str, last_event_id: str | None = None) -> AsyncGenerator[JobEvent]:
        """Yield what happened to a job after an event, or from its start, until it has ended.

        Raises: JobNotFound.
        """
        is_known = last_event_id is not None and _EVENT_ID.fullmatch(last_event_id)
        last = f"({last_event_id}" if is_known else "-"
        with self._watch(job_id, only_end=False) as watcher:
            while True:
                watcher.news.clear()
                async with self._available():
                    entries: Any = await self._redis.xrange(events_key(job_id), min=last)
                for event_id, entry in entries:
                    last = f"({event_id}"
                    event = _event(event_id, entry)
                    yield event
                    if event.status.is_terminal:
                        return
                if not entries and (await self.get(job_id)).status.is_terminal:
                    return  # the end was before ``last_event_id``
                await watcher.news.wait()

    async def cancel(self, job_id: str) -> JobView:
        """End a job that has not ended; its worker lets it go between two steps.

        Raises: JobNotFound.
        """
        async with self._available():
            await self._cancel(args=[job_id, now_text()])
        return await self.get(job_id)

    async def check(self) -> QueueHealth:
        """Say who would work on a job now. Answers within CHECK_TIMEOUT_S."""
        async with (
            self._available(),
            asyncio.timeout(CHECK_TIMEOUT_S),
            self._redis.pipeline(transaction=False) as pipeline,
        ):
            pipeline.smembers(WORKERS)
            for queue in (*QUEUES, ALONE):
                pipeline.llen(queue_key(queue))
            workers, *lengths = await pipeline.execute()
            for worker in workers:
                pipeline.hget(worker, "phase")
            phases = await pipeline.execute() if workers else []
        return QueueHealth(phases.count("ready"), phases.count("draining"), sum(lengths))

    async def metrics(self) -> QueueMetrics:
        """Return what the queue and its workers have counted."""
        queues = (*QUEUES, ALONE)
        async with (
            self._available(),
            asyncio.timeout(CHECK_TIMEOUT_S),
            self._redis.pipeline(transaction=False) as pipeline,
        ):
            pipeline.smembers(WORKERS)
            pipeline.hgetall(TOTALS)
            for queue in queues:
                pipeline.llen(queue_key(queue))
            keys, totals, *lengths = await pipeline.execute()
            for key in keys:
                pipeline.hmget(key, "phase", "running_images", "memory_bytes", "device_memory_bytes")
            workers = await pipeline.execute() if keys else []
        return QueueMetrics(
            {name: float(value) for name, value in totals.items()},
            dict(zip(queues, lengths, strict=True)),
            [
                WorkerGauges(key.rpartition(":")[2], phase, *(int(number or 0) for number in numbers))
                for key, (phase, *numbers) in zip(keys, workers, strict=True)
                if phase  # others are dead
            ],
        )

    async def close(self) -> None:
        """Stop listening and close the connections."""
        while self._reader is not None and not self._reader.done():
            self._reader.cancel()  # which a client that connects at this moment may swallow
            await asyncio.wait({self._reader}, timeout=0.1)
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()

    async def _read(self, job_id: str) -> tuple[dict[str, str], str | None, float]:
        """Return (fields of the job, its return value, the server's clock)."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.hmget(job_key(job_id), VIEW_FIELDS)
            pipeline.xrevrange(result_key(job_id), count=1)
            pipeline.time()
            values, results, (seconds, microseconds) = await pipeline.execute()
        job = {name: value for name, value in zip(VIEW_FIELDS, values, strict=True) if value is not None}
        value = results[0][1].get("return_value") if results else None
        return job, value, seconds + microseconds / 1e6

    async def _with_position(self, view: JobView, queue: str) -> JobView:
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.lpos(queue_key(ALONE), view.id)
            pipeline.lpos(queue_key(queue), view.id)
            pipeline.llen(queue_key("interactive"))
            pipeline.hgetall(PACE)
            alone, position, num_interactive, pace = await pipeline.execute()
        if alone is not None:
            position = alone
        elif position is not None and queue == "batch":
            position += num_interactive
        if position is None:
            return view  # taken in this moment
        left_s = _pace_s(pace) * (position + 1)
        return view.model_copy(
            update={"queue_position": position, "seconds_left": round(left_s, 3) if pace else None}
        )

    @asynccontextmanager
    async def _available(self) -> AsyncIterator[None]:
        try:
            yield
        except (redis.RedisError, TimeoutError, OSError) as error:
            logger.warning("the queue server does not answer: %s", type(error).__name__)
            raise QueueUnavailable("the queue does not answer; try again soon") from error
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # redis-py's asyncio.wait_for may have swallowed it: python/cpython#86296, until Python 3.12.
            raise asyncio.CancelledError

    @contextmanager
    def _watch(self, job_id: str, *, only_end: bool) -> Iterator[_Watcher]:
        """Hear of a job's changes; all watchers share one connection."""
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read_news())
        watcher = _Watcher(only_end)
        self._watchers.setdefault(job_id, set()).add(watcher)
        try:
            yield watcher
        finally:
            watchers = self._watchers[job_id]
            watchers.discard(watcher)
            if not watchers:
                del self._watchers[job_id]

    async def _read_news(self) -> None:
        backoff_s = 0.02
        while True:
            try:
                async with self._redis.pubsub() as news:
                    await news.subscribe(NEWS)
                    while True:
                        message = await news.get_message(timeout=LISTEN_S)
                        backoff_s = 0.02
                        if message is not None:
                            self._tell(message)
            except (redis.RedisError, OSError) as error:
                logger.warning("can't hear the queue server: %s", type(error).__name__)
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    def _tell(self, message: Mapping[str, Any]) -> None:
        if message["type"] == "subscribe":  # whatever happened before was not heard
            for watchers in self._watchers.values():
                for watcher in watchers:
                    watcher.news.set()
            return
        job_id, _, event = message["data"].partition(" ")
        for watcher in self._watchers.get(job_id, ()):
            if event in _ENDS or not watcher.only_end:
                watcher.news.set()


def _event(event_id: str, entry: Mapping[str, str]) -> JobEvent:
    if entry["event"] == "preview":
        preview = PreviewImage.model_validate_json(entry["data"])
        return JobEvent(event_id, "preview", JobStatus.RUNNING, preview=preview)
    if entry["event"] != "progress":
        return JobEvent(event_id, "status", JobStatus(entry["event"]))
    step, total = entry["data"].split()
    return JobEvent(event_id, "progress", JobStatus.RUNNING, Progress(step=int(step), total=int(total)))


def _pace_s(pace: Mapping[Any, Any]) -> float:
    """Return the seconds that the service takes for a job, from its running sums."""
    return float(pace["seconds"]) / float(pace["jobs"]) if pace else 0.0
