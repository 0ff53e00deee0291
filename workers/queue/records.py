"""The queue in Redis: where a job is kept.

A job is an RQ job (``rq info`` and ``Job.fetch`` see it): a hash, an entry in its queue's list, then in
RQ's registries. We add a few fields and keys of our own. ``workers/queue/lua/`` has every change of a job.

A job carries the version of its messages, and a worker leaves jobs of a later one than its own to others.
Workers are upgraded before the front end: they also take jobs without a version, which an older front end
submitted, and end them where it looks for their results.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from pydantic import TypeAdapter
from rq.defaults import RQ_KEY_PREFIX
from rq.job import JobStatus as RQStatus
from rq.utils import utcformat

from workers.messages import (
    OPERATIONS,
    JobError,
    JobMetrics,
    JobStatus,
    JobView,
    Operation,
    PipelineLoad,
    Priority,
    Progress,
    Resolved,
    Result,
    SeedVerdict,
    WebhookState,
    WebhookStatus,
)
from workers.traces import Trace

QUEUES: tuple[Priority, ...] = ("interactive", "batch")
QUARANTINE = "quarantine"  # the queue of jobs whose worker died: each is tried again alone
PREFIX = "smalti"
MESSAGES_VERSION = 3  # raised when a worker of the version before could not do right by a new job
_VERSION_WITHOUT_EDITS = 2  # workers of the versions before do right by such jobs
_VERSION_WITHOUT_WEBHOOK = 1
JOB_EVENTS = f"{PREFIX}:job_events"  # pub/sub: "<job id> <event>" at every change of a job
WORK_RATE = f"{PREFIX}:work_rate"  # running sums: seconds at work, cost and number of jobs done
TOTALS = f"{PREFIX}:totals"  # what all workers have counted, by the fields of workers/metrics.py
PAUSED = f"{PREFIX}:paused"  # is there while no job is to be claimed
HEALTH = f"{PREFIX}:health"  # written to see whether the server takes writes
SEPARATOR = "\n"  # of the pipelines in a worker's hash
_CALLS_PER_SWEEP = 40  # a sweep over an image in search of codes costs about as many calls of a prior
_CALLS_IN_TURN = 60  # of a flow prior: so long take the 196 short calls for 14×14 codes
WORKERS = f"{RQ_KEY_PREFIX}:workers"  # the keys of all workers, as RQ keeps them
STATUSES = {
    RQStatus.QUEUED: JobStatus.QUEUED,
    RQStatus.STARTED: JobStatus.RUNNING,
    RQStatus.FINISHED: JobStatus.SUCCEEDED,
    RQStatus.FAILED: JobStatus.FAILED,
    RQStatus.CANCELED: JobStatus.CANCELLED,
}
SEED_VERDICTS: TypeAdapter[dict[str, SeedVerdict]] = TypeAdapter(dict[str, SeedVerdict])  # by pipeline
LOADS: TypeAdapter[dict[str, PipelineLoad]] = TypeAdapter(dict[str, PipelineLoad])  # by pipeline
ORDERS = f"{PREFIX}:orders"  # by pipeline, what an administrator last asked for: "load 3", "unload 4"
NUM_ORDERS = f"{PREFIX}:num_orders"


def job_key(job_id: str) -> str:
    return f"{RQ_KEY_PREFIX}:job:{job_id}"


def queue_key(queue: str) -> str:
    return f"{RQ_KEY_PREFIX}:queue:{queue}"


def result_key(job_id: str) -> str:
    """The result of a job, in JSON; kept as long as the job."""
    return f"{PREFIX}:result:{job_id}"


def rq_result_key(job_id: str) -> str:
    """Where RQ keeps results, and older workers kept ours."""
    return f"{RQ_KEY_PREFIX}:results:{job_id}"


def wake_up_key(pipeline: str = "") -> str:
    """The list that workers with a pipeline wait on for jobs; a lost entry loses no job."""
    return f"{PREFIX}:wake_up:{pipeline}"


def own_wake_up_key(worker: str) -> str:
    """The list that only one worker waits on."""
    return f"{PREFIX}:wake_up_worker:{worker}"


def loading_key(pipeline: str, stamp: str) -> str:
    """The set of workers that load a pipeline, or died while they did."""
    return f"{PREFIX}:loading_by:{pipeline}:{stamp}"


LEASES = f"{PREFIX}:leases"  # the ids of running jobs, by when their worker must have been heard of


def events_key(job_id: str) -> str:
    """The stream of what happened to a job until now; there is none once it has ended."""
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


def jobs_key(owner: str) -> str:
    """The ids of the jobs of an API key, by when they were submitted; some have expired."""
    return f"{PREFIX}:jobs:{owner}"


def webhook_told_key(message_id: str) -> str:
    """A hash whose field ``webhook`` tells what came of a webhook that is not a job's."""
    return f"{PREFIX}:webhook_told:{message_id}"


def kept_blob_key(sha256: str) -> str:
    """Is there while a job that refers to a blob has failed and can be tried again."""
    return f"{PREFIX}:kept_blob:{sha256}"


def idempotency_key(owner: str, key: str) -> str:
    """What a client's key has made: "<digest of the request> <job id>", kept as long as the job.

    owner: whose key it is, as the keys of one client mean nothing to another.
    """
    return f"{PREFIX}:idempotency:{owner}:{hashlib.sha256(key.encode()).hexdigest()}"


def now_text() -> str:
    """The time as RQ writes it."""
    return utcformat(datetime.now(UTC))


def job_fields(
    request: Resolved,
    *,
    result_ttl_s: int,
    owner: str = "",
    trace: Trace | None = None,
    webhook_url: str | None = None,
) -> dict[str, str | bytes | int]:
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
        "pipeline": request.pipeline,
        "owner": owner,
        "trace": str(trace or ""),
        "version": _version(request, webhook_url),
        "cost": _cost(request),
        "slots": request.num_samples,
        "blobs": " ".join(sorted({source.sha256 for source in request.sources})),
        "tries": 0,
        "execution": "",
        **({"webhook_url": webhook_url, "webhook": "pending 0"} if webhook_url else {}),
    }


def _version(request: Resolved, webhook_url: str | None) -> int:
    """Return the version of messages that a worker must know to do right by a job."""
    if request.is_edit:
        return MESSAGES_VERSION
    return _VERSION_WITHOUT_EDITS if webhook_url else _VERSION_WITHOUT_WEBHOOK


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


def _cost(request: Resolved) -> int:
    """Return how much work a request is, in calls of a model for a sample: for estimates."""
    has_no_steps = "temperature" in request.options  # codes are drawn one after another
    calls: int = request.options.get("num_steps", _CALLS_IN_TURN if has_no_steps else 0)
    return request.num_samples * (1 + calls + _CALLS_PER_SWEEP * request.effort)


def result_text(result: Result, version: int) -> str:
    """Return a result as a job keeps it, which refers to files and codes and holds none.

    version: of the job's messages; without one, it is as RQ keeps return values, and for an older front end.
    """
    if version:
        return result.model_dump_json(exclude={"images"}, exclude_defaults=True)
    text = result.model_dump_json(exclude={"images": True, "codes": {"precision"}})  # it knows no such field
    return base64.b64encode(text.encode()).decode()


def result_of_rq(value: str) -> str:
    """Return the JSON of a result in RQ's form, as a worker of before kept it."""
    return base64.b64decode(value).decode()


VIEW_FIELDS = (
    "status", "operation", "origin", "created_at", "started_at", "ended_at", "tries", "step", "total",
    "error_code", "error_message", "deadline_at", "claimed_at", "last_event", "result_ttl",
    "queue_s", "total_s", "batch_size", "webhook",
)  # fmt: skip


def job_view(job_id: str, job: Mapping[str, str], result: str | None = None) -> JobView:
    """Return a job as its client sees it, from VIEW_FIELDS of its hash and its result in JSON.

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
        created_at=datetime.fromisoformat(job["created_at"]),
        started_at=_time(job, "started_at") if status != JobStatus.QUEUED else None,
        ended_at=_time(job, "ended_at"),
        num_tries=int(job["tries"]),
        progress=Progress(step=int(job["step"]), total=int(job["total"])) if "step" in job else None,
        result=Result.model_validate_json(result) if result else None,
        error=error,
        metrics=_metrics(job),
        expires_at=_expires_at(job),
        webhook=webhook_state(job["webhook"]) if "webhook" in job else None,
    )


def _metrics(job: Mapping[str, str]) -> JobMetrics | None:
    """Return what a job took; None before its end, and for one that an older worker has ended."""
    if "total_s" not in job:
        return None
    queue_s, total_s = float(job["queue_s"]), float(job["total_s"])
    return JobMetrics(
        queue_s=queue_s,
        compute_s=round(total_s - queue_s, 3),
        total_s=total_s,
        num_steps=int(job.get("step", 0)),
        batch_size=float(job["batch_size"]) if "batch_size" in job else None,
    )


def webhook_state(text: str) -> WebhookState:
    """Return how a webhook is, from a hash that tells it."""
    status, attempts = text.split()
    return WebhookState(status=cast(WebhookStatus, status), attempts=int(attempts))


def _expires_at(job: Mapping[str, str]) -> datetime | None:
    ended_at = _time(job, "ended_at")
    if ended_at is None or "result_ttl" not in job:
        return None
    return ended_at + timedelta(seconds=int(job["result_ttl"]))


def _time(job: Mapping[str, str], field: str) -> datetime | None:
    return datetime.fromisoformat(job[field]) if job.get(field) else None
