"""How jobs come into a worker: claimed while the engine has free slots, with their sources read."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue

import redis

from models.media.base import Array
from workers.backoff import Backoff
from workers.compute import Work
from workers.errors import InternalError, PipelineNotServed, ServiceError
from workers.in_flight import InFlight
from workers.messages import Resolved
from workers.outbox import Failed, Outbox
from workers.queue.consumer import Claim, Consumer
from workers.traces import working_for

logger = logging.getLogger(__name__)

STOP_TICK_S = 0.5  # a stop is noticed so soon while no slot is free
LOOK_EVERY_S = 0.02  # for jobs, while those of batch jobs are taken: waiting in Redis would miss their end


@dataclass(frozen=True)
class Arrival:
    """Jobs that were claimed, and the work of those whose sources could be read."""

    claims: tuple[Claim, ...]
    works: tuple[tuple[Claim, Work], ...]


@dataclass(frozen=True)
class Lost:
    """A job that was cancelled, ended by its deadline, or given to another worker."""

    claim: Claim


@dataclass
class Task:
    """Something to do on the compute thread, in slices between steps of the batch."""

    slices: Iterator[None]
    has_ended: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None


Inbox = SimpleQueue[Arrival | Lost | Task | None]  # what it is told; None only wakes it


class Intake:
    """A thread that claims jobs and puts them in the compute thread's inbox.

    What it claims is in flight from then on; a job that can't be done here goes to the outbox, failed.
    """

    def __init__(
        self,
        consumer: Consumer,
        in_flight: InFlight,
        inbox: Inbox,
        outbox: Outbox,
        *,
        read_sources: Callable[[Resolved], tuple[Array, ...]],
    ) -> None:
        self._consumer = consumer
        self._in_flight = in_flight
        self._inbox = inbox
        self._outbox = outbox
        self._read_sources = read_sources
        self._is_stopped = False  # not an Event, whose lock a signal handler might find taken
        self._thread = threading.Thread(target=self._take_jobs, name="intake", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Claim nothing new; a signal handler may call it."""
        self._is_stopped = True

    def join(self) -> None:
        """Wait until the last jobs that were claimed are in the inbox."""
        self._thread.join()

    def _take_jobs(self) -> None:
        """Claim jobs while slots are free; only a worker with free slots of both kinds waits in Redis."""
        must_drain = False
        backoff = Backoff()
        while not self._is_stopped:
            free = self._in_flight.wait_for_slots(until_idle=must_drain, timeout_s=STOP_TICK_S)
            if not any(free):
                continue
            try:
                with self._in_flight.claiming:
                    claims = self._consumer.claim(free, is_idle=not self._in_flight.all())
                    older = self._in_flight.add(claims.jobs)
                for claim in older:
                    self._inbox.put(Lost(claim))
                must_drain = claims.must_drain
                if claims.jobs:
                    self._take_in(claims.jobs)
                elif not must_drain:
                    if all(free):
                        self._consumer.wait_for_work()
                    else:
                        self._in_flight.wait_for_more(free, LOOK_EVERY_S if free.interactive else STOP_TICK_S)
                backoff.reset()
            except redis.RedisError as error:
                logger.warning("can't take jobs: %s", type(error).__name__)
                backoff.wait()
            except Exception:
                logger.exception("can't take jobs")
                backoff.wait()

    def _take_in(self, claims: Sequence[Claim]) -> None:
        """Pass jobs to the compute thread: together, but one by one those whose sources must be read."""
        without_sources = [claim for claim in claims if not claim.request.sources]
        groups = [without_sources] if without_sources else []
        groups += [[claim] for claim in claims if claim.request.sources]
        for group in groups:
            works = []
            for claim in group:
                with working_for(claim.trace):
                    work = self._work_of(claim)
                if work is not None:
                    works.append((claim, work))
            self._inbox.put(Arrival(tuple(group), tuple(works)))

    def _work_of(self, claim: Claim) -> Work | None:
        """Return a job with its sources read; None, and the job fails alone, when it can't be done here."""
        request = claim.request
        error: ServiceError
        if request.pipeline not in self._consumer.pipelines:  # or of a front end that does not tell the queue
            load = self._consumer.loads.get(request.pipeline)
            error = PipelineNotServed(request.pipeline, (load and load.error) or "")
        else:
            try:
                return Work(claim.job_id, request, self._read_sources(request))
            except ServiceError as raised:
                error = raised
            except Exception:  # the job boundary
                logger.exception("job_id=%s its sources can't be read", claim.job_id)
                error = InternalError("A source of the job could not be read.")
        self._outbox.put(Failed(claim, error))
        return None
