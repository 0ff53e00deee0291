"""Submit, look up, wait for and cancel jobs: only here does the front end use RQ and Redis."""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal
from uuid import uuid4

import redis.asyncio
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from app.job_events import JobEventReader
from workers.errors import JobNotFound, QueueFull, QueueUnavailable
from workers.messages import JobStatus, JobView, PreviewImage, Progress, Resolved, SeedVerdict
from workers.queue.records import (
    QUARANTINE,
    QUEUES,
    SEED_VERDICTS,
    THROUGHPUT,
    TOTALS,
    VIEW_FIELDS,
    WORKERS,
    blob_key,
    events_key,
    job_fields,
    job_key,
    job_view,
    now_text,
    queue_key,
    result_key,
)
from workers.queue.scripts import load_script

logger = logging.getLogger(__name__)

CHECK_TIMEOUT_S = 1.0
MAX_CONNECTIONS = 64
_WORKER_FIELDS = ("phase", "running_samples", "memory_bytes", "device_memory_bytes", "seed_verdicts")
_EVENT_ID = re.compile(r"\d{1,19}-\d{1,19}")  # within the 64 bits of each half


@dataclass(frozen=True)
class QueueHealth:
    """Which workers would work on a job now."""

    num_ready_workers: int
    num_draining_workers: int
    queue_length: int


@dataclass(frozen=True)
class WorkerGauges:
    """A worker as it was at its last heartbeat; ``seed_verdicts`` by pipeline."""

    name: str
    phase: str
    num_running_samples: int
    memory_bytes: int
    device_memory_bytes: int
    seed_verdicts: Mapping[str, SeedVerdict]


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
        self._submit = self._redis.register_script(load_script("submit"))
        self._cancel = self._redis.register_script(load_script("cancel"))
        self._end_overdue = self._redis.register_script(load_script("end_overdue"))
        self._job_events = JobEventReader(self._redis)

    async def submit(self, request: Resolved) -> JobView:
        """Put a job in the queue; its sources must be in the blob store already.

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
                job_s = _seconds_per_job(await self._redis.hgetall(THROUGHPUT))
                raise QueueFull(
                    f"{num_waiting} jobs wait, which is the most that may",
                    retry_after_s=min(60.0, max(1.0, job_s * num_waiting / 10)),
                )
        view = job_view(job_id, {name: str(value) for name, value in fields.items()})
        return view.model_copy(update={"queue_position": num_waiting})

    async def get(self, job_id: str) -> JobView:
        """Return the job as it is now.

        Raises: JobNotFound.
        """
        view, _ = await self._look_up(job_id)
        return view

    async def wait(self, job_id: str, timeout_s: float) -> JobView:
        """Return the job when it has ended, or as it is when the time is up.

        Raises: JobNotFound.
        """
        clock = asyncio.get_running_loop().time
        give_up_at = clock() + timeout_s
        with self._job_events.watch(job_id, only_end=True) as watcher:
            while True:
                watcher.has_news.clear()
                look_again_at = give_up_at
                try:
                    view, due_in_s = await self._look_up(job_id)
                except QueueUnavailable:
                    if clock() >= give_up_at:
                        raise
                else:
                    if view.status.is_terminal or clock() >= give_up_at:
                        return view
                    if due_in_s > 0 or view.status == JobStatus.QUEUED:  # a running job's worker ends it
                        look_again_at = min(give_up_at, clock() + due_in_s)
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(look_again_at):
                        await watcher.has_news.wait()

    async def events(self, job_id: str, last_event_id: str | None = None) -> AsyncGenerator[JobEvent]:
        """Yield what happened to a job after an event, or from its start, until it has ended.

        Raises: JobNotFound.
        """
        is_known = last_event_id is not None and _EVENT_ID.fullmatch(last_event_id)
        last = f"({last_event_id}" if is_known else "-"
        with self._job_events.watch(job_id, only_end=False) as watcher:
            while True:
                watcher.has_news.clear()
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
                await watcher.has_news.wait()

    async def cancel(self, job_id: str) -> JobView:
        """End a job that has not ended; its worker drops it between two steps.

        Raises: JobNotFound.
        """
        async with self._available():
            await self._cancel(args=[job_id, now_text()])
        return await self.get(job_id)

    async def check(self) -> QueueHealth:
        """Say which workers would work on a job now. Answers within CHECK_TIMEOUT_S."""
        async with (
            self._available(),
            asyncio.timeout(CHECK_TIMEOUT_S),
            self._redis.pipeline(transaction=False) as pipeline,
        ):
            pipeline.smembers(WORKERS)
            for queue in (*QUEUES, QUARANTINE):
                pipeline.llen(queue_key(queue))
            workers, *lengths = await pipeline.execute()
            for worker in workers:
                pipeline.hget(worker, "phase")
            phases = await pipeline.execute() if workers else []
        return QueueHealth(phases.count("ready"), phases.count("draining"), sum(lengths))

    async def metrics(self) -> QueueMetrics:
        """Return what the queue and its workers have counted."""
        queues = (*QUEUES, QUARANTINE)
        async with (
            self._available(),
            asyncio.timeout(CHECK_TIMEOUT_S),
            self._redis.pipeline(transaction=False) as pipeline,
        ):
            pipeline.hgetall(TOTALS)
            for queue in queues:
                pipeline.llen(queue_key(queue))
            totals, *lengths = await pipeline.execute()
            return QueueMetrics(
                {name: float(value) for name, value in totals.items()},
                dict(zip(queues, lengths, strict=True)),
                await self._living_workers(),
            )

    async def seed_verdicts(self) -> dict[str, list[SeedVerdict]]:
        """Return what every living worker found of the seed promise, by pipeline."""
        async with self._available(), asyncio.timeout(CHECK_TIMEOUT_S):
            workers = await self._living_workers()
        found: dict[str, list[SeedVerdict]] = {}
        for worker in sorted(workers, key=lambda worker: worker.name):
            for pipeline, verdict in worker.seed_verdicts.items():
                found.setdefault(pipeline, []).append(verdict)
        return found

    async def referenced_blobs(self, sha256s: Sequence[str]) -> list[bool]:
        """Say of each blob whether a job that has not ended refers to it."""
        async with self._available(), self._redis.pipeline(transaction=False) as pipeline:
            for sha256 in sha256s:
                pipeline.exists(blob_key(sha256))
            return [bool(answer) for answer in await pipeline.execute()] if sha256s else []

    async def close(self) -> None:
        """Stop watching and close the connections."""
        await self._job_events.close()
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()

    async def _look_up(self, job_id: str) -> tuple[JobView, float]:
        """Return the job as it is now, and how many seconds are left until its deadline.

        Raises: JobNotFound.
        """
        async with self._available():
            job, value, clock = await self._read(job_id)
            if job.get("status") == "queued" and float(job.get("deadline_at", "inf")) <= clock:
                await self._end_overdue(args=[now_text()])  # no worker may be there to do it
                job, value, clock = await self._read(job_id)
            due_in_s = float(job.get("deadline_at", "inf")) - clock
            try:
                view = job_view(job_id, job, value)
            except KeyError:
                raise JobNotFound(f"there is no job {job_id}, or its result has expired") from None
            if view.status == JobStatus.QUEUED:
                return await self._with_position(view, job["origin"]), due_in_s
        if view.status == JobStatus.RUNNING and view.progress and view.progress.step:
            ran_s, progress = clock - float(job["claimed_at"]), view.progress
            left_s = ran_s * (progress.total - progress.step) / progress.step
            view = view.model_copy(update={"seconds_left": round(left_s, 3)})
        return view, due_in_s

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

    async def _living_workers(self) -> list[WorkerGauges]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            keys = list(await self._smembers(WORKERS))
            for key in keys:
                pipeline.hmget(key, _WORKER_FIELDS)
            workers = await pipeline.execute() if keys else []
        return [
            WorkerGauges(
                name=key.rpartition(":")[2],
                phase=phase,
                num_running_samples=int(num_samples or 0),
                memory_bytes=int(memory or 0),
                device_memory_bytes=int(device_memory or 0),
                seed_verdicts=SEED_VERDICTS.validate_json(verdicts or "{}"),
            )
            for key, (phase, num_samples, memory, device_memory, verdicts) in zip(keys, workers, strict=True)
            if phase  # others are dead
        ]

    async def _smembers(self, key: str) -> set[str]:
        members: Any = self._redis.smembers(key)
        return set(await members)

    async def _with_position(self, view: JobView, queue: str) -> JobView:
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.lpos(queue_key(QUARANTINE), view.id)
            pipeline.lpos(queue_key(queue), view.id)
            pipeline.llen(queue_key("interactive"))
            pipeline.hgetall(THROUGHPUT)
            quarantined, position, num_interactive, throughput = await pipeline.execute()
        if quarantined is not None:
            position = quarantined
        elif position is not None and queue == "batch":
            position += num_interactive
        if position is None:
            return view  # taken in this moment
        left_s = _seconds_per_job(throughput) * (position + 1)
        return view.model_copy(
            update={"queue_position": position, "seconds_left": round(left_s, 3) if throughput else None}
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


def _event(event_id: str, entry: Mapping[str, str]) -> JobEvent:
    if entry["event"] == "preview":
        preview = PreviewImage.model_validate_json(entry["data"])
        return JobEvent(event_id, "preview", JobStatus.RUNNING, preview=preview)
    if entry["event"] != "progress":
        return JobEvent(event_id, "status", JobStatus(entry["event"]))
    step, total = entry["data"].split()
    return JobEvent(event_id, "progress", JobStatus.RUNNING, Progress(step=int(step), total=int(total)))


def _seconds_per_job(throughput: Mapping[Any, Any]) -> float:
    """Return the seconds that the service takes for a job, from its running sums."""
    return float(throughput["seconds"]) / float(throughput["jobs"]) if throughput else 0.0
