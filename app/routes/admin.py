"""For administrators: hold the queue, let it go on, and see what the workers do."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from app.openapi import Responses, problems
from app.queue_checks import RunningJob, WorkerGauges
from app.services import Services, ServicesNeeded
from workers.messages import Progress

router = APIRouter(tags=["administration"])

_JOB: Any = {
    "job_id": "5f0c6a1e9b7d4c3e8a2f1b0d9e8c7a65",
    "operation": "generate",
    "pipeline": "fashion-mnist",
    "num_samples": 2,
    "progress": {"step": 5, "total": 28},
}
_WORKER: Any = {
    "name": "0c9f6f7f1b1d4d0f8a55c7f0a4b1c2d3",
    "host": "gpu-1",
    "device": "cuda:0",
    "phase": "ready",
    "pipelines": ["fashion-mnist"],
    "loaded": {"fashion-mnist": 12_170_000},
    "memory_bytes": 1_500_000_000,
    "device_memory_bytes": 4_000_000_000,
    "num_running_samples": 2,
    "running": [_JOB],
}
_WORKERS: Responses = {200: {"content": {"application/json": {"example": [_WORKER]}}}}
_FAILURES = problems("unauthorized", "forbidden", "queue_unavailable")


class QueueState(BaseModel):
    """Whether jobs are begun, and how many wait."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"is_paused": True, "queue_length": 12}]})

    is_paused: bool
    queue_length: int = Field(description="Jobs that wait.")


class WorkerJob(BaseModel):
    """A job that a worker has."""

    job_id: str
    operation: str
    pipeline: str
    num_samples: int
    progress: Progress | None = Field(
        description="Calls of the model over all samples; null before it has told some."
    )


class WorkerState(BaseModel):
    """A living worker, as of its last heartbeat; its jobs as they are now."""

    name: str
    host: str
    device: str = Field(description="Empty for a worker of an older version.")
    phase: str = Field(description="starting, ready or draining.")
    pipelines: tuple[str, ...] = Field(description="Those whose jobs it takes; others it can't load.")
    loaded: dict[str, int] = Field(description="Those in its memory, with the bytes of their weights.")
    memory_bytes: int
    device_memory_bytes: int
    num_running_samples: int
    running: list[WorkerJob]


@router.post("/queue/pause", operation_id="pause_queue", summary="Hold the queue", responses=_FAILURES)
async def pause_queue(services: ServicesNeeded) -> QueueState:
    """Let no worker begin a job. Jobs are accepted, as many as the queue may hold, and running ones go on.

    It stays so until POST /queue/resume, whatever is started again.
    """
    await services.queue.control.pause()
    return await _state(services)


@router.post("/queue/resume", operation_id="resume_queue", summary="Go on", responses=_FAILURES)
async def resume_queue(services: ServicesNeeded) -> QueueState:
    """Let workers begin jobs."""
    await services.queue.control.resume()
    return await _state(services)


@router.get(
    "/workers",
    operation_id="list_workers",
    summary="List the workers",
    responses=_WORKERS | _FAILURES,
)
async def list_workers(services: ServicesNeeded) -> list[WorkerState]:
    """List the living workers, with what each has and does."""
    workers, running = await services.queue.checks.workers()
    return [_worker_state(worker, running) for worker in workers]


async def _state(services: Services) -> QueueState:
    health = await services.queue.checks.check()
    return QueueState(is_paused=health.is_paused, queue_length=health.queue_length)


def _worker_state(worker: WorkerGauges, running: list[RunningJob]) -> WorkerState:
    jobs = [
        WorkerJob(
            job_id=job.id,
            operation=job.operation,
            pipeline=job.pipeline,
            num_samples=job.num_samples,
            progress=job.progress,
        )
        for job in running
        if job.worker == worker.name
    ]
    return WorkerState(
        name=worker.name,
        host=worker.host,
        device=worker.device,
        phase=worker.phase,
        pipelines=worker.pipelines,
        loaded={
            name: load.num_bytes for name, load in sorted(worker.loads.items()) if load.state == "loaded"
        },
        memory_bytes=worker.memory_bytes,
        device_memory_bytes=worker.device_memory_bytes,
        num_running_samples=worker.num_running_samples,
        running=jobs,
    )
