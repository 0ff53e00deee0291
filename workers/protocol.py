"""The queue in Redis: where a job is kept.

A job is an RQ job (``rq info`` and ``Job.fetch`` see it): a hash, an entry in its queue's list, then in
RQ's registries. To these come a few fields and keys of ours. ``workers/transitions.py`` has every change.
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
    DecodeRequest,
    GenerateRequest,
    JobError,
    JobStatus,
    JobView,
    Operation,
    Priority,
    Progress,
    Request,
    Result,
    operation_of,
)

QUEUES: tuple[Priority, ...] = ("interactive", "batch")
ALONE = "alone"  # the queue of jobs whose worker died: each is tried again without company
PREFIX = "smalti"
NEWS = f"{PREFIX}:news"  # pub/sub: "<job id> <event>" at every change of a job
PACE = f"{PREFIX}:pace"  # running sums: seconds at work, jobs done
BELL = f"{PREFIX}:bell"  # a list that idle workers wait on; a lost ring loses no job
STATUSES = {
    RQStatus.QUEUED: JobStatus.QUEUED,
    RQStatus.STARTED: JobStatus.RUNNING,
    RQStatus.FINISHED: JobStatus.SUCCEEDED,
    RQStatus.FAILED: JobStatus.FAILED,
    RQStatus.CANCELED: JobStatus.CANCELLED,
}
_RESULT: TypeAdapter[Result] = TypeAdapter(Result)


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


WORKERS = f"{RQ_KEY_PREFIX}:workers"


TOTALS = f"{PREFIX}:totals"  # what all workers have counted, by the fields of workers/metrics.py


def control_key(worker: str) -> str:
    """The list of what a worker should let go: "<job id>:<execution>"."""
    return f"{PREFIX}:control:{worker}"


def now_text() -> str:
    """The time as RQ writes it."""
    return utcformat(datetime.now(UTC))


def num_slots(request: Request) -> int:
    """Return how many of an engine's slots a request takes: one for each image."""
    if isinstance(request, GenerateRequest):
        return request.num_images
    return len(request.codes) if isinstance(request, DecodeRequest) else 1


def job_fields(request: Request, *, result_ttl_s: int) -> dict[str, str | bytes | int]:
    """Return the hash of a new job, as ``rq.job.Job.to_dict`` would, but not compressed."""
    operation = operation_of(request)
    now = now_text()
    return {
        "data": f'["{operation}",null,[],{{"request":{request.model_dump_json()}}}]',
        "status": RQStatus.QUEUED.value,
        "origin": request.priority,
        "description": operation,
        "created_at": now,
        "enqueued_at": now,
        "timeout": -1,
        "result_ttl": result_ttl_s,
        "failure_ttl": result_ttl_s,
        "operation": operation,
        "slots": num_slots(request),
        "tries": 0,
        "execution": "",
    }


def read_request(job: Mapping[str, Any]) -> Request:
    """Return the request in a job's hash.

    Raises: ValueError for anything but one of our operations with its request: RQ imports and calls what
        ``data`` and the callback fields name, so whoever can write to Redis could run any code.
    """
    if any(job.get(f"{kind}_callback_name") for kind in ("success", "failure", "stopped")):
        raise ValueError("a job with callbacks")
    function, _, _, arguments = json.loads(job["data"])
    if function not in OPERATIONS:
        raise ValueError("a job of an unknown operation")
    return OPERATIONS[function].model_validate(arguments["request"])


def return_value(result: Result) -> str:
    """Return a result as RQ keeps return values; results hold references, never image bytes."""
    return base64.b64encode(result.model_dump_json().encode()).decode()


VIEW_FIELDS = (
    "status", "operation", "origin", "created_at", "started_at", "ended_at", "tries", "step", "total",
    "error_code", "error_message", "deadline_at", "claimed_at",
)  # fmt: skip


def job_view(job_id: str, job: Mapping[str, str], value: str | None = None) -> JobView:
    """Return a job as its client sees it, from VIEW_FIELDS of its hash and its return value.

    Raises: KeyError when it is no job of ours.
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
        result=_RESULT.validate_json(base64.b64decode(value)) if value else None,
        error=error,
    )


def _time(job: Mapping[str, str], field: str) -> datetime | None:
    return utcparse(job[field]) if job.get(field) else None
