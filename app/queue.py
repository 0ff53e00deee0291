"""Submit, look up, wait for and cancel jobs."""

import asyncio
import logging
import math
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext, suppress
from typing import Any
from uuid import uuid4

from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from app.idempotency import Idempotency
from app.job_events import JobEvent, JobEventReader, News, Watcher
from app.job_list import JobPage, read_page, read_statuses, read_views
from app.limits import Allowance
from app.queue_checks import QueueChecks
from app.queue_control import QueueControl
from app.redis_connections import available, connect, disconnect
from app.webhooks.queue import WebhookQueue
from workers.errors import (
    IdempotencyKeyReused,
    JobNotFound,
    JobNotRetryable,
    PipelineNotServed,
    QueueFull,
    QueueShareExceeded,
    QueueUnavailable,
    RateLimitExceeded,
)
from workers.messages import JobStatus, JobView, Operation, PreviewImage, Progress, Resolved
from workers.moderation import Moderation
from workers.queue.records import (
    VIEW_FIELDS,
    WORK_RATE,
    blob_key,
    events_key,
    idempotency_key,
    job_fields,
    job_key,
    job_view,
    kept_blob_key,
    now_text,
    read_request,
    result_key,
    result_of_rq,
    rq_result_key,
)
from workers.queue.scripts import load_script
from workers.traces import current_trace

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 64
# Every command here may be sent twice. A second in all: what a server that starts again takes, mostly.
_RETRY = Retry(ExponentialBackoff(cap=0.5, base=0.02), 6)
_EVENT_ID = re.compile(r"\d{1,19}-\d{1,19}")  # within the 64 bits of each half


def new_job_id() -> str:
    return uuid4().hex


class JobQueue:
    """The queue as the front end sees it. Every method may raise QueueUnavailable."""

    def __init__(
        self, redis_url: str, *, max_length: int, result_ttl_s: int, moderation: Moderation | None = None
    ) -> None:
        self._redis = connect(redis_url, MAX_CONNECTIONS, _RETRY)
        self.checks = QueueChecks(redis_url)
        self.control = QueueControl(self._redis)
        self.webhooks = WebhookQueue(self._redis)
        self._max_length = max_length
        self._result_ttl_s = result_ttl_s
        self._moderation = moderation
        self._submit = self._redis.register_script(load_script("submit"))
        self._cancel = self._redis.register_script(load_script("cancel"))
        self._end_overdue = self._redis.register_script(load_script("end_overdue"))
        self._position = self._redis.register_script(load_script("position"))
        self._job_events = JobEventReader(self._redis, self._read_news)

    async def submit(
        self,
        request: Resolved,
        job_id: str | None = None,
        idempotency: Idempotency | None = None,
        *,
        owner: str = "",
        allowance: Allowance | None = None,
        result_ttl_s: int | None = None,
        webhook_url: str | None = None,
        num_places_more: int = 0,
    ) -> JobView:
        """Put a job in the queue; its sources must be in the blob store already.

        job_id: a new one, for a caller that watches the job before it is there. The job that is returned has
        another where the idempotency key has made one before. owner: the name of the API key that the job
        belongs to. allowance: what that key may ask for; a job that is there already takes nothing of it.
        result_ttl_s: how long the job is kept after its end, where that isn't as usual. webhook_url: where
        its end is told, checked already. num_places_more: beyond the queue's length, for this job.

        Raises: ModerationRefused; QueueFull; QueueShareExceeded; RateLimitExceeded; IdempotencyKeyReused;
            PipelineNotServed when there are workers, but none that has the pipeline.
        """
        if self._moderation is not None:
            await self._moderation.check_request(request, owner)
        job_id = job_id or new_job_id()
        fields = job_fields(
            request,
            result_ttl_s=result_ttl_s or self._result_ttl_s,
            owner=owner,
            trace=current_trace.get(),
            webhook_url=webhook_url,
        )
        deadline_s = "" if request.deadline_s is None else request.deadline_s
        flat = [part for item in fields.items() for part in item]
        kept_at, digest = "", ""
        if idempotency is not None:
            kept_at, digest = idempotency_key(idempotency.owner, idempotency.key), idempotency.digest
        allowance = allowance or Allowance()
        async with available():
            verdict, num_waiting, *made = await self._submit(
                args=[
                    job_id, request.priority, self._max_length + num_places_more, deadline_s,
                    request.pipeline, kept_at, digest, owner, *allowance.arguments, *flat,
                ]
            )  # fmt: skip
            if len(made) > 1:
                allowance.read(made[1])
            if verdict == "queue_full":
                told = f"{num_waiting} jobs wait, which is the most that may"
                raise QueueFull(told, retry_after_s=await self._room_in_s(num_waiting))
            if verdict == "queue_share_exceeded":
                told = f"{made[0]} jobs of the API key {owner} wait, which is the most that may of one key"
                raise QueueShareExceeded(told, retry_after_s=await self._room_in_s(num_waiting))
        if verdict == "rate_limit_exceeded":
            raise RateLimitExceeded(
                f"the API key {owner} may submit {allowance.rate}; the next in {allowance.wait_s:.3g} s",
                retry_after_s=allowance.wait_s,
            )
        if verdict == "pipeline_not_served":
            raise PipelineNotServed(request.pipeline)
        if verdict == "idempotency_key_reused":
            raise IdempotencyKeyReused(f"job {made[0]}")
        if verdict == "replayed":
            logger.info("job_id=%s asked for again", made[0])
            return await self.get(made[0])
        logger.info("job_id=%s submitted: %s", job_id, request.operation)
        view = job_view(job_id, {name: str(value) for name, value in fields.items()})
        return view.model_copy(update={"queue_position": num_waiting})

    async def page(
        self,
        owner: str,
        *,
        status: JobStatus | None = None,
        operation: Operation | None = None,
        limit: int,
        cursor: str | None = None,
    ) -> JobPage:
        """Return jobs of an API key, the newest first; see ``read_page``.

        Raises: InvalidRequest.
        """
        async with available():
            return await read_page(
                self._redis, owner, status=status, operation=operation, limit=limit, cursor=cursor
            )

    async def owner(self, job_id: str) -> str:
        """Return the name of the API key that a job belongs to; "" for none, also where there is no job."""
        async with available():
            return str(await self._redis.hget(job_key(job_id), "owner") or "")

    async def get(self, job_id: str) -> JobView:
        """Return the job as it is now.

        Raises: JobNotFound.
        """
        view, _ = await self._look_up(job_id)
        return view

    async def request_of(self, job_id: str) -> Resolved:
        """Return the request of a job that has failed.

        Raises: JobNotFound; JobNotRetryable.
        """
        view = await self.get(job_id)
        if view.status != JobStatus.FAILED:
            raise JobNotRetryable(f"job {job_id} is {view.status}; only a job that has failed is tried again")
        async with available():
            job: Any = await self._redis.hgetall(job_key(job_id))
        try:
            return read_request(job)
        except (ValueError, KeyError):
            raise JobNotRetryable(
                f"the request of job {job_id} was too large to be kept; send it again"
            ) from None

    def watch(self, job_id: str) -> AbstractContextManager[Watcher]:
        """Watch for the end of a job, which need not be there yet."""
        return self._job_events.watch(job_id, only_end=True)

    async def wait(self, job_id: str, timeout_s: float, watcher: Watcher | None = None) -> JobView:
        """Return the job when it has ended, or as it is when the time is up.

        watcher: of a job without a deadline, from before it was submitted; so the job is looked up only when
        there is news of it.

        Raises: JobNotFound.
        """
        clock = asyncio.get_running_loop().time
        give_up_at = clock() + timeout_s
        with self.watch(job_id) if watcher is None else nullcontext(watcher) as watching:
            look_again_at = clock() if watcher is None else give_up_at
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(look_again_at):
                        await watching.has_news.wait()
                watching.has_news.clear()
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

    async def events(self, job_id: str, last_event_id: str | None = None) -> AsyncGenerator[JobEvent]:
        """Yield what happened to a job after an event, or from its start, until it has ended.

        Of a job that has ended, only the end is known. All who listen to a job share one reader.

        Raises: JobNotFound.
        """
        is_known = last_event_id is not None and _EVENT_ID.fullmatch(last_event_id)
        with self._job_events.feed(job_id) as feed:
            async with aclosing(feed.follow(last_event_id if is_known else None)) as events:
                async for event in events:
                    yield event

    async def cancel(self, job_id: str) -> JobView:
        """End a job that has not ended; its worker drops it between two steps.

        Raises: JobNotFound.
        """
        async with available():
            if not await self._cancel(args=[job_id, now_text()]):
                raise _not_found(job_id)  # though it may be submitted by now: it was not cancelled
        return await self.get(job_id)

    async def statuses(self, job_ids: Sequence[str]) -> list[JobStatus | None]:
        """Return the states of jobs; None for one that isn't there."""
        async with available():
            return await read_statuses(self._redis, job_ids)

    async def views(self, job_ids: Sequence[str]) -> list[JobView]:
        """Return those of the jobs that are there, as they are; without queue positions."""
        async with available():
            return await read_views(self._redis, job_ids)

    async def forget_soon(self, job_ids: Sequence[str], keep_s: int) -> None:
        """Keep jobs that have ended, whose results are elsewhere by now, only so much longer."""
        async with available(), self._redis.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.expire(job_key(job_id), keep_s)
                pipeline.expire(result_key(job_id), keep_s)
            await pipeline.execute()

    async def referenced_blobs(self, sha256s: Sequence[str]) -> list[bool]:
        """Say of each blob whether a job refers to it that has not ended, or can be tried again."""
        async with available(), self._redis.pipeline(transaction=False) as pipeline:
            for sha256 in sha256s:
                pipeline.exists(blob_key(sha256), kept_blob_key(sha256))
            return [bool(answer) for answer in await pipeline.execute()] if sha256s else []

    async def close(self) -> None:
        """Stop watching and close the connections."""
        await self._job_events.close()
        await self.checks.close()
        await disconnect(self._redis)

    async def _room_in_s(self, num_waiting: int) -> float:
        """Return when to come again while the queue is too long: once about a tenth of it is done."""
        rate: Any = await self._redis.hgetall(WORK_RATE)
        job_s = float(rate["seconds"]) / float(rate["jobs"]) if rate else 0.0
        return min(60.0, max(1.0, job_s * num_waiting / 10))

    async def _look_up(self, job_id: str) -> tuple[JobView, float]:
        """Return the job as it is now, and how many seconds are left until its deadline.

        Raises: JobNotFound.
        """
        async with available():
            job, result, clock = await self._read(job_id)
            if job.get("status") == "queued" and float(job.get("deadline_at", "inf")) <= clock:
                await self._end_overdue(args=[now_text()])  # no worker may be there to do it
                job, result, clock = await self._read(job_id)
            due_in_s = float(job.get("deadline_at", "inf")) - clock
            try:
                view = job_view(job_id, job, result)
            except KeyError:
                raise _not_found(job_id) from None
            if view.status == JobStatus.QUEUED:
                return await self._with_position(view, job["origin"]), due_in_s
        if view.status == JobStatus.RUNNING and view.progress and view.progress.step:
            ran_s, progress = clock - float(job["claimed_at"]), view.progress
            left_s = ran_s * (progress.total - progress.step) / progress.step
            view = view.model_copy(update={"seconds_left": round(left_s, 3)})
        return view, due_in_s

    async def _read(self, job_id: str) -> tuple[dict[str, str], str | None, float]:
        """Return (fields of the job, its result, the server's clock)."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.hmget(job_key(job_id), VIEW_FIELDS)
            pipeline.get(result_key(job_id))
            pipeline.time()
            values, result, (seconds, microseconds) = await pipeline.execute()
        job = {name: value for name, value in zip(VIEW_FIELDS, values, strict=True) if value is not None}
        if job.get("status") == "finished" and result is None:  # by a worker of before
            entries: Any = await self._redis.xrevrange(rq_result_key(job_id), count=1)
            result = result_of_rq(entries[0][1]["return_value"]) if entries else None
        return job, result, seconds + microseconds / 1e6

    async def _read_news(self, job_id: str, last_event_id: str | None) -> News:
        """Return what has happened to a job after an event.

        Raises: JobNotFound.
        """
        start = "-" if last_event_id is None else f"({last_event_id}"
        async with available():
            entries: Any = await self._redis.xrange(events_key(job_id), min=start)
        events = [_event(event_id, entry) for event_id, entry in entries]
        job, due_in_s = await self._look_up(job_id)
        if not job.status.is_terminal:
            is_running = job.status == JobStatus.RUNNING and due_in_s <= 0  # its worker ends it
            return News(events, math.inf if is_running else due_in_s)
        events = [event for event in events if not event.status.is_terminal]
        async with available():
            last: Any = await self._redis.hget(job_key(job_id), "last_event")
        return News([*events, JobEvent(last or f"{2**63}-0", "status", job.status, job=job)], math.inf)

    async def _with_position(self, view: JobView, queue: str) -> JobView:
        answer = await self._position(args=[view.id, queue])
        if not answer:
            return view  # taken in this moment
        position, *left_s = answer
        seconds = round(float(left_s[0]), 3) if left_s else None
        return view.model_copy(update={"queue_position": position, "seconds_left": seconds})


def _event(event_id: str, entry: Mapping[str, str]) -> JobEvent:
    if entry["event"] == "preview":
        preview = PreviewImage.model_validate_json(entry["data"])
        return JobEvent(event_id, "preview", JobStatus.RUNNING, preview=preview)
    if entry["event"] != "progress":
        return JobEvent(event_id, "status", JobStatus(entry["event"]))
    step, total = entry["data"].split()
    return JobEvent(event_id, "progress", JobStatus.RUNNING, Progress(step=int(step), total=int(total)))


def _not_found(job_id: str) -> JobNotFound:
    return JobNotFound(f"there is no job {job_id}, or its result has expired")
