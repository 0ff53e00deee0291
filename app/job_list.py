"""One's jobs, the newest first, in pages."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis.asyncio
from rq.job import JobStatus as RQStatus

from workers.errors import InvalidRequest
from workers.messages import OPERATIONS, JobStatus, JobView, Operation
from workers.queue.records import STATUSES, VIEW_FIELDS, job_key, job_view, jobs_key, result_key

MAX_JOBS = 100  # on a page
_CHUNK = 200  # jobs that are looked at together
_MAX_SEEN = 2_000  # for one page, however few of them match
CURSOR = re.compile(r"([0-9]{1,17}(?:\.[0-9]{1,9})?)-([0-9a-f]{32})")


@dataclass(frozen=True)
class JobPage:
    """Some jobs. next: where the page after it begins; None on the last one."""

    jobs: Sequence[JobView]
    next: str | None


async def read_page(
    client: redis.asyncio.Redis,
    owner: str,
    *,
    status: JobStatus | None,
    operation: Operation | None,
    limit: int,
    cursor: str | None,
) -> JobPage:
    """Return the jobs of an API key that match, from a cursor on.

    A page may have fewer jobs than asked for, and even none, and another after it.

    Raises: InvalidRequest for what is no cursor.
    """
    score, last_id = _read_cursor(cursor)
    statuses = [name.value for name, each in STATUSES.items() if status in (None, each)]
    operations = OPERATIONS if operation is None else (operation,)
    found: list[tuple[str, dict[str, str]]] = []
    num_seen = 0
    while num_seen < _MAX_SEEN:
        entries: list[tuple[str, float]] = await client.zrevrangebyscore(  # type: ignore[assignment]
            jobs_key(owner), score, "-inf", start=0, num=_CHUNK, withscores=True
        )
        fresh = [each for each in entries if last_id is None or each[::-1] < (float(score), last_id)]
        jobs = await _jobs(client, [job_id for job_id, _ in fresh])
        for (job_id, at), job in zip(fresh, jobs, strict=True):
            score, last_id = repr(at), job_id
            num_seen += 1
            if job.get("status") in statuses and job.get("operation") in operations:
                found.append((job_id, job))
            if len(found) == limit:
                return JobPage(await _views(client, found), f"{score}-{last_id}")
        if len(entries) < _CHUNK:
            return JobPage(await _views(client, found), None)
    return JobPage(await _views(client, found), f"{score}-{last_id}")


async def read_statuses(client: redis.asyncio.Redis, job_ids: Sequence[str]) -> list[JobStatus | None]:
    """Return the states of jobs; None for one that isn't there."""
    async with client.pipeline(transaction=False) as pipeline:
        for job_id in job_ids:
            pipeline.hget(job_key(job_id), "status")
        answers: list[str | None] = await pipeline.execute() if job_ids else []
    return [None if answer is None else STATUSES[RQStatus(answer)] for answer in answers]


async def read_views(client: redis.asyncio.Redis, job_ids: Sequence[str]) -> list[JobView]:
    """Return those of the jobs that are there, as they are."""
    jobs = await _jobs(client, job_ids)
    return await _views(client, [each for each in zip(job_ids, jobs, strict=True) if "status" in each[1]])


def _read_cursor(cursor: str | None) -> tuple[str, str | None]:
    if cursor is None:
        return "+inf", None
    parts = CURSOR.fullmatch(cursor)
    if parts is None:
        raise InvalidRequest(f"cursor: is not the `next` of a page, got {cursor[:64]!r}")
    return parts[1], parts[2]


async def _jobs(client: redis.asyncio.Redis, job_ids: Sequence[str]) -> list[dict[str, str]]:
    """Return the fields of jobs; none of those that have expired."""
    async with client.pipeline(transaction=False) as pipeline:
        for job_id in job_ids:
            pipeline.hmget(job_key(job_id), VIEW_FIELDS)
        answers = await pipeline.execute() if job_ids else []
    return [
        {name: value for name, value in zip(VIEW_FIELDS, values, strict=True) if value is not None}
        for values in answers
    ]


async def _views(client: redis.asyncio.Redis, jobs: Sequence[tuple[str, dict[str, str]]]) -> list[JobView]:
    """Return jobs as they are, with their results."""
    results: Any = await client.mget([result_key(job_id) for job_id, _ in jobs]) if jobs else []
    return [job_view(job_id, job, result) for (job_id, job), result in zip(jobs, results, strict=True)]
