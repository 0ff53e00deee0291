"""The worker's side of the queue: takes jobs, keeps their leases and ends them."""

import logging
import os
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import uuid4

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from rq.version import VERSION as RQ_VERSION

from workers.compute import Slots
from workers.errors import InvalidRequest, ServiceError
from workers.messages import PipelineLoad, PreviewImage, Progress, Resolved, Result, SeedVerdict
from workers.metrics import Meter, device_memory_bytes, memory_bytes
from workers.queue.records import (
    LOADS,
    MESSAGES_VERSION,
    ORDERS,
    QUEUES,
    SEED_VERDICTS,
    SEPARATOR,
    TOTALS,
    WORKERS,
    loading_key,
    now_text,
    own_wake_up_key,
    read_request,
    result_text,
    revoked_key,
    wake_up_key,
    worker_key,
    workers_key,
)
from workers.queue.scripts import load_script
from workers.traces import Trace, read_trace, working_for

logger = logging.getLogger(__name__)

Phase = Literal["starting", "ready", "draining"]
Destination = Literal["front", "quarantine"]  # of its queue, as if never taken; or to be tried again alone

MAX_WAIT_S = 1.0  # in Redis, so that a stop is noticed
UNREGISTERED_TTL_S = 60  # as RQ's own workers


@dataclass(frozen=True)
class Claim:
    """A job that a worker has taken. ``execution`` numbers the claim; an older claim can't change the job.

    version: of the job's messages. trace: of the request that made it. owner: the name of its API key.
    claimed_at: by this machine's clock, since 1970. waited_s: from its acceptance until then.
    """

    job_id: str
    execution: str
    request: Resolved = field(compare=False)
    num_tries: int = field(compare=False)
    deadline: float | None = field(compare=False)  # on time.monotonic
    version: int = field(compare=False, default=MESSAGES_VERSION)
    trace: Trace | None = field(compare=False, default=None)
    owner: str = field(compare=False, default="")
    claimed_at: float = field(compare=False, default_factory=time.time)
    waited_s: float = field(compare=False, default=0)

    @property
    def num_slots(self) -> int:
        return self.request.num_samples

    @property
    def is_overdue(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline


@dataclass(frozen=True)
class Claims:
    """What a call of ``claim`` got, and whether these must end before more are claimed."""

    jobs: tuple[Claim, ...]
    must_drain: bool


@dataclass(frozen=True)
class Wanted:
    """A pipeline that a job waits for; is_taken: another living worker takes jobs for it."""

    pipeline: str
    waited_s: float
    is_taken: bool


@dataclass(frozen=True)
class Outcome:
    """How a job ended. progress, batch_size: as in ``Finished``."""

    claim: Claim
    end: Result | ServiceError
    progress: Progress | None = None
    batch_size: float | None = None


class Consumer:
    """A worker's connection to the queue, registered so that ``rq info`` shows it.

    Any thread may call any method. Every method raises redis.RedisError at once when the server does not
    answer: the caller knows what can wait. pipelines: those whose jobs it takes, and ``open`` those that it
    takes them for now, as they are loaded; both may change, as may ``loads``, which tells of each.
    """

    def __init__(
        self, redis_url: str, pipelines: Iterable[str], *, lease_s: float, max_tries: int, ageing_s: float
    ) -> None:
        self._redis = redis.Redis.from_url(
            redis_url,
            socket_timeout=MAX_WAIT_S + 5,
            socket_connect_timeout=2,
            retry=Retry(NoBackoff(), 0),
            retry_on_error=[redis.ReadOnlyError],  # the connection is closed: a failover has another master
        )
        self.pipelines = self.open = tuple(pipelines)
        self.loads: Mapping[str, PipelineLoad] = {}
        self.name = uuid4().hex
        self.phase: Phase = "starting"
        self.device = ""
        self.meter = Meter()
        self.seed_verdicts: Mapping[str, SeedVerdict] = {}
        self._key = worker_key(self.name)
        self._birth = now_text()
        self._num_succeeded = 0
        self._num_failed = 0
        self._lease_s = lease_s
        self._max_tries = max_tries
        self._ageing_s = ageing_s
        self._claim = self._redis.register_script(load_script("claim"))
        self._finish = self._redis.register_script(load_script("finish"))
        self._release = self._redis.register_script(load_script("release"))
        self._heartbeat = self._redis.register_script(load_script("heartbeat"))
        self._end_overdue = self._redis.register_script(load_script("end_overdue"))
        self._reap = self._redis.register_script(load_script("reap"))
        self._progress = self._redis.register_script(load_script("progress"))
        self._preview = self._redis.register_script(load_script("preview"))
        self._wanted = self._redis.register_script(load_script("wanted"))

    def claim(self, slots: Slots, *, is_idle: bool) -> Claims:
        """Take jobs that fill the slots; the last may be larger than what is left."""
        about: list[str | float] = [
            self.name,
            slots.interactive,
            slots.batch,
            int(is_idle),
            self._lease_s,
            now_text(),
            self._ageing_s,
        ]
        clock, must_drain, *flat = self._claim(args=[*about, MESSAGES_VERSION, *self.open])
        jobs = []
        for job_id, fields in zip(flat[::2], flat[1::2], strict=True):
            job = _decoded(fields)
            trace = read_trace(job.get("trace"))
            try:
                request = read_request(job)
            except (ValueError, KeyError, TypeError) as error:
                with working_for(trace):
                    self._refuse(job_id.decode(), job["execution"], error)
                continue
            deadline = None
            if "deadline_at" in job:
                deadline = time.monotonic() + float(job["deadline_at"]) - float(clock)
            version = int(job.get("version", 0))
            num_tries, owner = int(job["tries"]), job.get("owner", "")
            waited_s = float(clock) - float(job.get("submitted_at", clock))
            jobs.append(
                Claim(
                    job_id.decode(),
                    job["execution"],
                    request,
                    num_tries,
                    deadline,
                    version,
                    trace,
                    owner,
                    waited_s=waited_s,
                )
            )
        return Claims(tuple(jobs), bool(must_drain))

    def wait_for_work(self) -> None:
        """Return when a job may have come, and after ``MAX_WAIT_S`` at the latest."""
        lists = [wake_up_key(pipeline) for pipeline in ("", *self.open)]
        self._redis.blpop([own_wake_up_key(self.name), *lists], timeout=MAX_WAIT_S)

    def wake_up(self) -> None:
        """Let this worker look for jobs at once."""
        with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.rpush(own_wake_up_key(self.name), 1)
            pipeline.ltrim(own_wake_up_key(self.name), -1, -1)
            pipeline.expire(own_wake_up_key(self.name), int(MAX_WAIT_S) + 1)
            pipeline.execute()

    def orders(self) -> dict[str, tuple[str, int]]:
        """Return what administrators last asked for; see ``read_orders``."""
        return read_orders(self._redis)

    def wanted(self, pipelines: Sequence[str], patience_s: float) -> list[Wanted]:
        """Return those pipelines, of some that aren't loaded, that waiting jobs want of this worker."""
        flat = self._wanted(args=[self.name, self._lease_s, patience_s, *pipelines])
        return [
            Wanted(name.decode(), float(waited_s), bool(is_taken))
            for name, waited_s, is_taken in zip(flat[::3], flat[1::3], flat[2::3], strict=True)
        ]

    def begin_load(self, pipeline: str, stamp: str) -> int:
        """Note that this worker loads a pipeline; return how many have died while they did."""
        key = loading_key(pipeline, stamp)
        others: Any = self._redis.smembers(key)
        with self._redis.pipeline(transaction=False) as commands:
            commands.sadd(key, self.name)
            commands.expire(key, UNREGISTERED_TTL_S * 60)
            for other in others:
                commands.exists(worker_key(other.decode()))
            return sum(not lives for lives in commands.execute()[2:])

    def end_load(self, pipeline: str, stamp: str, *, is_loaded: bool = False) -> None:
        """Note that this worker has loaded a pipeline, or has lived through a failure."""
        key = loading_key(pipeline, stamp)
        if is_loaded:
            self._redis.delete(key)
        else:
            self._redis.srem(key, self.name)

    def wait_for_revoked(self, timeout_s: float) -> tuple[str, str] | None:
        """Return (job id, execution) of a job that this worker has lost, or None when the time is up."""
        answer: Any = self._redis.blpop([revoked_key(self.name)], timeout=min(timeout_s, MAX_WAIT_S))
        if answer is None:
            return None
        job_id, _, execution = answer[1].decode().partition(":")
        return job_id, execution

    def finish(self, outcomes: Sequence[Outcome]) -> list[bool]:
        """End jobs, and say of each whether it was still this worker's to end."""
        if len(outcomes) == 1:  # a pipeline asks first whether the server knows the script
            were_ours = [bool(self._finish(args=_ending(outcomes[0])))]
        else:
            with self._redis.pipeline(transaction=False) as pipeline:
                for outcome in outcomes:
                    self._finish(args=_ending(outcome), client=pipeline)
                were_ours = [bool(answer) for answer in pipeline.execute()]
        for outcome, was_ours in zip(outcomes, were_ours, strict=True):
            self._num_failed += was_ours and isinstance(outcome.end, ServiceError)
            self._num_succeeded += was_ours and isinstance(outcome.end, Result)
        return were_ours

    def release(self, claims: Iterable[Claim], to: Destination) -> None:
        """Put jobs back into the queue. A job that has had its tries, and would go to quarantine, fails."""
        with self._redis.pipeline(transaction=False) as pipeline:
            for claim in claims:
                self._release(
                    args=[claim.job_id, claim.execution, to, self._max_tries, now_text()], client=pipeline
                )
            pipeline.execute()

    def publish_progress(self, progress: Iterable[tuple[Claim, Progress]]) -> None:
        """Show how far running jobs are."""
        self._progress(
            args=[
                value
                for claim, each in progress
                for value in (claim.job_id, claim.execution, each.step, each.total)
            ]
        )

    def publish_previews(self, previews: Iterable[tuple[Claim, PreviewImage]]) -> None:
        """Show what running jobs are on the way to."""
        with self._redis.pipeline(transaction=False) as pipeline:
            for claim, preview in previews:
                self._preview(
                    args=[claim.job_id, claim.execution, preview.model_dump_json()], client=pipeline
                )
            pipeline.execute()

    def heartbeat(self, claims: Sequence[Claim]) -> list[Claim]:
        """Say that this worker lives, and renew the leases of its jobs; return those that it has lost."""
        with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.hset(self._key, mapping=self._fields(claims))
            pipeline.expire(self._key, int(2 * self._lease_s) + 1)
            for workers in (WORKERS, *map(workers_key, QUEUES)):
                pipeline.sadd(workers, self._key)
            held = [value for claim in claims for value in (claim.job_id, claim.execution)]
            self._heartbeat(args=[self._lease_s, *held], client=pipeline)
            lost = {job_id.decode() for job_id in pipeline.execute()[-1]}
        self._send_counts()
        return [claim for claim in claims if claim.job_id in lost]

    def reap(self) -> None:
        """Give the jobs of dead workers to living ones, and end what is past its deadline or tries."""
        for job_id in self._end_overdue(args=[now_text()]):
            logger.info("job_id=%s deadline_exceeded", job_id.decode())
        reaped = self._reap(args=[self._lease_s, self._max_tries, now_text()])
        for job_id, what, trace in zip(reaped[::3], reaped[1::3], reaped[2::3], strict=True):
            with working_for(read_trace(trace.decode())):
                logger.warning("job_id=%s reaped: %s", job_id.decode(), what.decode())

    def close(self) -> None:
        """Say that this worker has ended, if the server answers, and close the connections."""
        try:
            self._send_counts()
            with self._redis.pipeline(transaction=False) as pipeline:
                for workers in (WORKERS, *map(workers_key, QUEUES)):
                    pipeline.srem(workers, self._key)
                pipeline.hset(self._key, "death", now_text())
                pipeline.expire(self._key, UNREGISTERED_TTL_S)
                pipeline.execute()
        except redis.RedisError:
            logger.warning("the queue server could not be told that this worker ends")
        self._redis.close()

    def _refuse(self, job_id: str, execution: str, error: Exception) -> None:
        logger.warning("job_id=%s refused: %s", job_id, type(error).__name__)
        message = "The job is not one of this service's."
        about = [job_id, execution, "failed", now_text(), "", "", ""]
        self._finish(args=[*about, InvalidRequest.code, message])

    def _fields(self, claims: Sequence[Claim]) -> Mapping[Any, str | bytes | int]:
        """Return the hash of this worker: RQ's fields, then ours."""
        return {
            "birth": self._birth,
            "last_heartbeat": now_text(),
            "queues": ",".join(QUEUES),
            "pid": os.getpid(),
            "hostname": socket.gethostname(),
            "ip_address": "unknown",  # RQ asks the server for it
            "version": RQ_VERSION,
            "python_version": sys.version,
            "state": "busy" if claims else "idle",
            "successful_job_count": self._num_succeeded,
            "failed_job_count": self._num_failed,
            "phase": self.phase,
            "device": self.device,
            "pipelines": SEPARATOR.join(self.pipelines),
            "open": SEPARATOR.join(self.open),
            "loads": LOADS.dump_json(dict(self.loads)),
            "running_samples": sum(claim.num_slots for claim in claims),
            "memory_bytes": memory_bytes(),
            "device_memory_bytes": device_memory_bytes(),
            "seed_verdicts": SEED_VERDICTS.dump_json(
                {
                    pipeline: verdict.model_copy(update={"worker": self.name})
                    for pipeline, verdict in self.seed_verdicts.items()
                }
            ),
        }

    def _send_counts(self) -> None:
        sums = self.meter.take()
        try:
            with self._redis.pipeline(transaction=False) as pipeline:
                for name, amount in sums.items():
                    pipeline.hincrbyfloat(TOTALS, name, amount)
                pipeline.execute()
        except redis.RedisError:
            self.meter.add(sums)  # some of it may be counted twice, which is better than not at all
            raise


def read_orders(client: "redis.Redis") -> dict[str, tuple[str, int]]:
    """Return what administrators last asked for, by pipeline: ("load" or "unload", number of the order)."""
    found: Any = client.hgetall(ORDERS)
    orders = {}
    for name, text in found.items():
        what, _, number = text.decode().partition(" ")
        orders[name.decode()] = (what, int(number))
    return orders


def _ending(outcome: Outcome) -> list[str | int]:
    """Return what finish.lua has to know."""
    claim, end, progress, size = outcome.claim, outcome.end, outcome.progress, outcome.batch_size
    what = [end.code, str(end)] if isinstance(end, ServiceError) else [result_text(end, claim.version)]
    return [
        claim.job_id,
        claim.execution,
        "failed" if isinstance(end, ServiceError) else "finished",
        now_text(),
        *(("", "") if progress is None else (progress.step, progress.total)),
        "" if size is None else f"{size:.2f}",
        *what,
    ]


def _decoded(fields: Sequence[bytes]) -> dict[str, Any]:
    texts = [field.decode(errors="replace") for field in fields]
    return dict(zip(texts[::2], texts[1::2], strict=True))
