"""What there is to know of the queue and its workers: for health checks, metrics and lists of pipelines."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from app.redis_connections import available, connect, disconnect
from workers.messages import PipelineLoad, Progress, SeedVerdict
from workers.queue.records import (
    HEALTH,
    LEASES,
    LOADS,
    ORDERS,
    PAUSED,
    QUARANTINE,
    QUEUES,
    SEED_VERDICTS,
    SEPARATOR,
    TOTALS,
    WORKERS,
    job_key,
    now_text,
    queue_key,
)

CHECK_TIMEOUT_S = 1.0
_MAX_CONNECTIONS = 4
_WORKER_FIELDS = (
    "phase", "pipelines", "running_samples", "memory_bytes", "device_memory_bytes", "seed_verdicts",
    "hostname", "device", "loads",
)  # fmt: skip
_RUNNING_FIELDS = ("worker_name", "operation", "pipeline", "slots", "step", "total")
_MAX_RUNNING_TOLD = 10_000


@dataclass(frozen=True)
class QueueHealth:
    """Which workers would work on a job now. pipelines: those that the ready ones have; failed: why others,
    which no ready one has, could not be loaded.
    """

    num_ready_workers: int
    num_draining_workers: int
    queue_length: int
    pipelines: frozenset[str]
    failed: Mapping[str, str] = field(default_factory=dict)
    is_paused: bool = False


@dataclass(frozen=True)
class WorkerGauges:
    """A worker as it was at its last heartbeat; ``seed_verdicts`` and ``loads`` by pipeline."""

    name: str
    phase: str
    pipelines: tuple[str, ...]
    num_running_samples: int
    memory_bytes: int
    device_memory_bytes: int
    seed_verdicts: Mapping[str, SeedVerdict]
    host: str
    device: str
    loads: Mapping[str, PipelineLoad] = field(default_factory=dict)


@dataclass(frozen=True)
class PipelineStates:
    """What the living workers say of pipelines, by name; pinned: those that an administrator wants loaded."""

    verdicts: Mapping[str, Sequence[SeedVerdict]] = field(default_factory=dict)
    loads: Mapping[str, Sequence[PipelineLoad]] = field(default_factory=dict)
    pinned: frozenset[str] = frozenset()


@dataclass(frozen=True)
class RunningJob:
    """A job that a worker has. progress: calls of the model, of all of its samples; None before the first."""

    id: str
    worker: str
    operation: str
    pipeline: str
    num_samples: int
    progress: Progress | None


@dataclass(frozen=True)
class QueueMetrics:
    """What is to be told of the queue and its workers; ``totals`` are the sums of ``workers.metrics``."""

    totals: Mapping[str, float]
    lengths: Mapping[str, int]
    workers: Sequence[WorkerGauges]
    is_paused: bool = False


class QueueChecks:
    """Asks over connections of its own, which wait for no other caller; all may raise QueueUnavailable."""

    def __init__(self, redis_url: str) -> None:
        self._redis = connect(redis_url, _MAX_CONNECTIONS, Retry(NoBackoff(), 0))

    async def check(self) -> QueueHealth:
        """Say which workers would work on a job now. Answers within CHECK_TIMEOUT_S.

        Raises: QueueUnavailable, also where the server takes no writes.
        """
        lengths, workers, is_paused = await self._read_gauges(["set", HEALTH, now_text(), "EX", 60])
        ready = [worker for worker in workers if worker.phase == "ready"]
        return QueueHealth(
            num_ready_workers=len(ready),
            num_draining_workers=sum(worker.phase == "draining" for worker in workers),
            queue_length=sum(lengths.values()),
            pipelines=frozenset(name for worker in ready for name in worker.pipelines),
            failed={
                name: load.error
                for worker in ready
                for name, load in worker.loads.items()
                if load.error and not any(name in each.pipelines for each in ready)
            },
            is_paused=is_paused,
        )

    async def workers(self) -> tuple[list[WorkerGauges], list[RunningJob]]:
        """Return the living workers, and the jobs that run."""
        _, workers, _ = await self._read_gauges()
        async with (
            available(),
            asyncio.timeout(CHECK_TIMEOUT_S),
            self._redis.pipeline(transaction=False) as pipeline,
        ):
            job_ids: Any = await self._redis.zrange(LEASES, 0, _MAX_RUNNING_TOLD - 1)
            for job_id in job_ids:
                pipeline.hmget(job_key(job_id), _RUNNING_FIELDS)
            found = await pipeline.execute() if job_ids else []
        running = [
            RunningJob(
                job_id, worker, operation, name, int(slots or 1),
                Progress(step=int(step), total=int(total)) if step else None,
            )
            for job_id, (worker, operation, name, slots, step, total) in zip(job_ids, found, strict=True)
            if worker  # others have just ended
        ]  # fmt: skip
        return sorted(workers, key=lambda worker: worker.name), running

    async def metrics(self) -> QueueMetrics:
        """Return what the queue and its workers have counted."""
        lengths, workers, is_paused = await self._read_gauges()
        async with available(), asyncio.timeout(CHECK_TIMEOUT_S):
            totals: Any = await self._redis.hgetall(TOTALS)
        totals = {name: float(value) for name, value in totals.items()}
        return QueueMetrics(totals, lengths, workers, is_paused)

    async def pipeline_states(self) -> PipelineStates:
        """Return what every living worker says of pipelines: the seed promise, and whether it has them."""
        _, workers, _ = await self._read_gauges()
        async with available(), asyncio.timeout(CHECK_TIMEOUT_S):
            orders: Any = await self._redis.hgetall(ORDERS)
        verdicts: dict[str, list[SeedVerdict]] = {}
        loads: dict[str, list[PipelineLoad]] = {}
        for worker in sorted(workers, key=lambda worker: worker.name):
            for name, verdict in worker.seed_verdicts.items():
                verdicts.setdefault(name, []).append(verdict)
            for name, load in worker.loads.items():
                loads.setdefault(name, []).append(load.model_copy(update={"worker": worker.name}))
        pinned = frozenset(name for name, order in orders.items() if order.startswith("load "))
        return PipelineStates(verdicts, loads, pinned)

    async def close(self) -> None:
        """Close the connections."""
        await disconnect(self._redis)

    async def _read_gauges(self, *commands: Sequence[Any]) -> tuple[dict[str, int], list[WorkerGauges], bool]:
        """Return the queues' lengths, the living workers, and whether jobs are held, after these commands."""
        queues = (*QUEUES, QUARANTINE)
        async with (
            available(),
            asyncio.timeout(CHECK_TIMEOUT_S),
            self._redis.pipeline(transaction=False) as pipeline,
        ):
            for command in commands:
                pipeline.execute_command(*command)
            pipeline.exists(PAUSED)
            pipeline.smembers(WORKERS)
            for queue in queues:
                pipeline.llen(queue_key(queue))
            is_paused, keys, *lengths = (await pipeline.execute())[len(commands) :]
            for key in keys:
                pipeline.hmget(key, _WORKER_FIELDS)
            found = await pipeline.execute() if keys else []
        workers = [
            WorkerGauges(
                name=key.rpartition(":")[2],
                phase=phase,
                pipelines=tuple(filter(None, (pipelines or "").split(SEPARATOR))),
                num_running_samples=int(num_samples or 0),
                memory_bytes=int(memory or 0),
                device_memory_bytes=int(device_memory or 0),
                seed_verdicts=SEED_VERDICTS.validate_json(verdicts or "{}"),
                host=host or "",
                device=device or "",
                loads=LOADS.validate_json(loads or "{}"),
            )
            for key, (
                phase, pipelines, num_samples, memory, device_memory, verdicts, host, device, loads,
            ) in zip(keys, found, strict=True)
            if phase  # others are dead
        ]  # fmt: skip
        return dict(zip(queues, lengths, strict=True)), workers, bool(is_paused)
