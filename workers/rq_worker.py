"""The worker's side of the queue: an RQ worker that holds many jobs at once."""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from rq import worker_registration
from rq.serializers import JSONSerializer
from rq.utils import as_text, now
from rq.worker import SimpleWorker

from workers import transitions
from workers.errors import InvalidRequest, ServiceError
from workers.messages import PreviewImage, Progress, Request, Result
from workers.metrics import Meter, device_memory_bytes, memory_bytes
from workers.protocol import BELL, QUEUES, TOTALS, control_key, now_text, read_request, return_value
from workers.protocol import num_slots as num_slots_of

logger = logging.getLogger(__name__)

Phase = Literal["starting", "ready", "draining"]
BLOCK_S = 1.0  # the longest wait in Redis, so that signals get their turn


@dataclass(frozen=True)
class Claim:
    """A job in a worker's hands. ``execution`` numbers the claim; who has an older one has no say."""

    job_id: str
    execution: str
    request: Request
    num_slots: int
    num_tries: int
    deadline: float | None  # on time.monotonic

    @property
    def is_overdue(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline


@dataclass(frozen=True)
class Claims:
    """What a call of ``claim`` got, and whether to claim more before these have ended."""

    jobs: tuple[Claim, ...]
    must_drain: bool


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    claim: Claim
    end: Result | ServiceError


class RQWorker(SimpleWorker):
    """Takes, keeps and completes jobs by ``workers/transitions.py``. Any thread may call any method.

    RQ's own loop (``work``) is not used. Every method raises redis.RedisError when the server does not
    answer, at once: the caller knows what can wait.
    """

    def __init__(self, redis_url: str, *, lease_s: float, max_tries: int, ageing_s: float) -> None:
        connection = redis.Redis.from_url(
            redis_url, socket_timeout=BLOCK_S + 5, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0)
        )
        super().__init__(list(QUEUES), connection=connection, serializer=JSONSerializer)
        self.phase: Phase = "starting"
        self.meter = Meter()
        self.birth_date = self.last_heartbeat = now()
        self._lease_s = lease_s
        self._max_tries = max_tries
        self._ageing_s = ageing_s
        self._claim = connection.register_script(transitions.CLAIM)
        self._finish = connection.register_script(transitions.FINISH)
        self._release = connection.register_script(transitions.RELEASE)
        self._beat = connection.register_script(transitions.BEAT)
        self._end_overdue = connection.register_script(transitions.END_OVERDUE)
        self._reap = connection.register_script(transitions.REAP)
        self._progress = connection.register_script(transitions.PROGRESS)
        self._preview = connection.register_script(transitions.PREVIEW)

    @property
    def connection_timeout(self) -> int:
        """Seconds that RQ wants a socket to wait at least; ours are set above."""
        return 0

    def _set_ip_address(self, connection: "redis.Redis") -> None:
        self.ip_address = "unknown"  # RQ asks the server, which may not be there yet

    def claim(self, num_slots: int, *, is_idle: bool) -> Claims:
        """Take jobs that fill the slots; the last may be larger than what is left."""
        clock, mode, *flat = self._claim(
            args=[self.name, num_slots, int(is_idle), self._lease_s, now_text(), self._ageing_s]
        )
        jobs = []
        for job_id, fields in zip(flat[::2], flat[1::2], strict=True):
            job = _decoded(fields)
            name, execution = job_id.decode(), job["execution"]
            deadline = None
            if "deadline_at" in job:
                deadline = time.monotonic() + float(job["deadline_at"]) - float(clock)
            try:
                request = read_request(job)
            except (ValueError, KeyError, TypeError) as error:
                logger.warning("job_id=%s refused: %s", name, type(error).__name__)
                self._finish(
                    args=[
                        name,
                        execution,
                        "failed",
                        now_text(),
                        InvalidRequest.code,
                        "No job of this service.",
                    ]
                )
                continue
            jobs.append(Claim(name, execution, request, num_slots_of(request), int(job["tries"]), deadline))
        return Claims(tuple(jobs), must_drain=mode != transitions.TOGETHER)

    def wait_for_work(self) -> None:
        """Return when a job may have come, and after ``BLOCK_S`` at the latest."""
        self.connection.blpop([BELL], timeout=BLOCK_S)

    def wait_for_dismissal(self, timeout_s: float) -> tuple[str, str] | None:
        """Return (job id, execution) of a job that is no longer ours, or None when the time is up."""
        answer = self.connection.blpop([control_key(self.name)], timeout=min(timeout_s, BLOCK_S))
        if answer is None:
            return None
        job_id, _, execution = as_text(answer[1]).partition(":")
        return job_id, execution

    def finish(self, outcomes: Sequence[Outcome]) -> list[bool]:
        """End jobs, and say of each whether it was still ours to end."""
        with self.connection.pipeline(transaction=False) as pipeline:
            for outcome in outcomes:
                claim, end = outcome.claim, outcome.end
                if isinstance(end, ServiceError):
                    status, values = "failed", [end.code, str(end)]
                else:
                    status, values = "finished", [return_value(end)]
                self._finish(
                    args=[claim.job_id, claim.execution, status, now_text(), *values], client=pipeline
                )
            return [bool(answer) for answer in pipeline.execute()]

    def hand_back(self, claims: Iterable[Claim], how: Literal["back", "alone"]) -> None:
        """Give jobs back to the queue: to the front as if never taken, or to be tried again alone.

        A job that has had its tries, and is to be tried alone, fails.
        """
        with self.connection.pipeline(transaction=False) as pipeline:
            for claim in claims:
                self._release(
                    args=[claim.job_id, claim.execution, how, self._max_tries, now_text()], client=pipeline
                )
            pipeline.execute()

    def tell_progress(self, reports: Iterable[tuple[Claim, Progress]]) -> None:
        """Show how far running jobs are."""
        self._progress(
            args=[
                value
                for claim, progress in reports
                for value in (claim.job_id, claim.execution, progress.step, progress.total)
            ]
        )

    def tell_previews(self, previews: Iterable[tuple[Claim, PreviewImage]]) -> None:
        """Show what running jobs are on the way to."""
        with self.connection.pipeline(transaction=False) as pipeline:
            for claim, preview in previews:
                self._preview(
                    args=[claim.job_id, claim.execution, preview.model_dump_json()], client=pipeline
                )
            pipeline.execute()

    def beat(self, claims: Sequence[Claim]) -> list[Claim]:
        """Say that this worker lives and has these jobs; return those that are no longer its own."""
        self.last_heartbeat = now()
        with self.connection.pipeline(transaction=False) as pipeline:
            worker_registration.register(self, pipeline)
            state = "busy" if claims else "idle"
            pipeline.hset(
                self.key,
                mapping={
                    **self.serialize(),
                    "state": state,
                    "phase": self.phase,
                    "running_images": sum(claim.num_slots for claim in claims),
                    "memory_bytes": memory_bytes(),
                    "device_memory_bytes": device_memory_bytes(),
                },
            )
            pipeline.expire(self.key, int(2 * self._lease_s) + 1)
            held = [value for claim in claims for value in (claim.job_id, claim.execution)]
            self._beat(args=[self._lease_s, *held], client=pipeline)
            lost = {job_id.decode() for job_id in pipeline.execute()[-1]}
        self._send_counts()
        return [claim for claim in claims if claim.job_id in lost]

    def reap(self) -> None:
        """Give the jobs of dead workers to living ones, and end what is past its deadline or tries."""
        for job_id in self._end_overdue(args=[now_text()]):
            logger.info("job_id=%s deadline_exceeded", job_id.decode())
        ended = self._reap(args=[self._lease_s, self._max_tries, now_text()])
        for job_id, what in zip(ended[::2], ended[1::2], strict=True):
            logger.warning("job_id=%s reaped: %s", job_id.decode(), what.decode())
        for queue in self.queues:
            worker_registration.clean_worker_registry(queue)

    def close(self) -> None:
        """Say that this worker has ended, if the server hears it, and close the connections."""
        try:
            self._send_counts()
            self.register_death()  # type: ignore[no-untyped-call]
        except redis.RedisError:
            logger.warning("the queue server does not hear that this worker ends")
        self.connection.close()

    def _send_counts(self) -> None:
        sums = self.meter.take()
        try:
            with self.connection.pipeline(transaction=False) as pipeline:
                for name, amount in sums.items():
                    pipeline.hincrbyfloat(TOTALS, name, amount)
                pipeline.execute()
        except redis.RedisError:
            self.meter.add(sums)  # some of it may be counted twice: better than a lost worker's silence
            raise


def _decoded(fields: Sequence[bytes]) -> dict[str, Any]:
    texts = [field.decode(errors="replace") for field in fields]
    return dict(zip(texts[::2], texts[1::2], strict=True))
