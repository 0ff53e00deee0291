"""The queue in Redis: where a job is kept.

A job is an RQ job (``rq info`` and ``Job.fetch`` see it): a hash, an entry in its queue's list, then in
RQ's registries. We add a few fields and keys of our own. ``workers/queue/lua/`` has every change of a job.
"""

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import TypeAdapter
from rq.defaults import RQ_KEY_PREFIX
from rq.job import JobStatus as RQStatus
from rq.utils import utcformat, utcparse

from workers.messages import (
    OPERATIONS,
    JobError,
    JobStatus,
    JobView,
    Operation,
    Priority,
    Progress,
    Resolved,
    Result,
    SeedVerdict,
)

QUEUES: tuple[Priority, ...] = ("interactive", "batch")
QUARANTINE = "quarantine"  # the queue of jobs whose worker died: each is tried again alone
PREFIX = "smalti"
JOB_EVENTS = f"{PREFIX}:job_events"  # pub/sub: "<job id> <event>" at every change of a job
THROUGHPUT = f"{PREFIX}:throughput"  # running sums: seconds at work, jobs done
TOTALS = f"{PREFIX}:totals"  # what all workers have counted, by the fields of workers/metrics.py
WAKE_UP = f"{PREFIX}:wake_up"  # a list that idle workers wait on; a lost entry loses no job
WORKERS = f"{RQ_KEY_PREFIX}:workers"  # the keys of all workers, as RQ keeps them
STATUSES = {
    RQStatus.QUEUED: JobStatus.QUEUED,
    RQStatus.STARTED: JobStatus.RUNNING,
    RQStatus.FINISHED: JobStatus.SUCCEEDED,
    RQStatus.FAILED: JobStatus.FAILED,
    RQStatus.CANCELED: JobStatus.CANCELLED,
}
SEED_VERDICTS: TypeAdapter[dict[str, SeedVerdict]] = TypeAdapter(dict[str, SeedVerdict])  # by pipeline


def job_key(job_id: str) -> str:
    return f"{RQ_KEY_PREFIX}:job:{job_id}"


def queue_key(queue: str) -> str:
    return f"{RQ_KEY_PREFIX}:queue:{queue}"


def result_key(job_id: str) -> str:
    return f"{RQ_KEY_PREFIX}:results:{job_id}"


def events_key(job_id: str) -> str:
    """The stream of what happened to a job; kept as long as the job."""
    return f"{PREFIX}:events:{job_id}"


def worker_key(worker: str) -> str:
    return f"{RQ_KEY_PREFIX}:worker:{worker}"


def workers_key(queue: str) -> str:
    """The keys of a queue's workers, as RQ keeps them."""
    return f"{RQ_KEY_PREFIX}:workers:{queue}"


def revoked_key(worker: str) -> str:
    """The list of jobs that a worker has lost: "<job id>:<execution>"."""
    return f"{PREFIX}:revoked:{worker}"


def blob_key(sha256: str) -> str:
    """The set of jobs that refer to a blob and have not ended."""
    return f"{PREFIX}:blob:{sha256}"


def now_text() -> str:
    """The time as RQ writes it."""
    return utcformat(datetime.now(UTC))


def job_fields(request: Resolved, *, result_ttl_s: int) -> dict[str, str | bytes | int]:
    """Return the hash of a new job, as ``rq.job.Job.to_dict`` would, but not compressed."""
    now = now_text()
    return {
        "data": f'["{request.operation}",null,[],{{"request":{request.model_dump_json()}}}]',
        "status": RQStatus.QUEUED.value,
        "origin": request.priority,
        "description": request.operation,
        "created_at": now,
        "enqueued_at": now,
        "timeout": -1,
        "result_ttl": result_ttl_s,
        "failure_ttl": result_ttl_s,
        "operation": request.operation,
        "slots": request.num_samples,
        "blobs": " ".join(sorted({source.sha256 for source in request.sources})),
        "tries": 0,
        "execution": "",
    }


def read_request(job: Mapping[str, Any]) -> Resolved:
    """Return the request in a job's hash.

    Raises: ValueError for anything but one of our operations with its request: RQ imports and calls what
        ``data`` and the callback fields name, so anyone who can write to Redis could run any code.
    """
    if any(job.get(f"{kind}_callback_name") for kind in ("success", "failure", "stopped")):
        raise ValueError("a job with callbacks")
    function, _, _, arguments = json.loads(job["data"])
    if function not in OPERATIONS:
        raise ValueError("a job of an unknown operation")
    request = Resolved.model_validate(arguments["request"])
    if request.operation != function:
        raise ValueError("a job of two operations")
    return request


def return_value(result: Result) -> str:
    """Return a result as RQ keeps return values; a result refers to files and codes, and holds none."""
    return base64.b64encode(result.model_dump_json(exclude={"images"}).encode()).decode()


VIEW_FIELDS = (
    "status", "operation", "origin", "created_at", "started_at", "ended_at", "tries", "step", "total",
    "error_code", "error_message", "deadline_at", "claimed_at",
)  # fmt: skip


def job_view(job_id: str, job: Mapping[str, str], value: str | None = None) -> JobView:
    """Return a job as its client sees it, from VIEW_FIELDS of its hash and its return value.

    Raises: KeyError when it is not one of our jobs.
    """
    status = STATUSES[RQStatus(job["status"])]
    error = None
    if status == JobStatus.FAILED:
        error = JobError(
            code=job.get("error_code", "worker_lost"), message=job.get("error_message", "The worker died.")
        )
    operation: Operation = job["operation"]  # type: ignore[assignment]
    return JobView(
        id=job_id,
        operation=operation,
        status=status,
        created_at=utcparse(job["created_at"]),
        started_at=_time(job, "started_at") if status != JobStatus.QUEUED else None,
        ended_at=_time(job, "ended_at"),
        num_tries=int(job["tries"]),
        progress=Progress(step=int(job["step"]), total=int(job["total"])) if "step" in job else None,
        result=Result.model_validate_json(base64.b64decode(value)) if value else None,
        error=error,
    )


def _time(job: Mapping[str, str], field: str) -> datetime | None:
    return utcparse(job[field]) if job.get(field) else None
