"""The worker: takes jobs off the queue, feeds the engine, completes each job; knows no tensors.

main     the compute loop, which alone touches the engine; no network, no disk
intake   claims jobs while the engine has free slots, and reads their sources (workers/intake.py)
loader   loads pipelines and lets go of them (workers/loader.py)
control  says that the worker lives, hears which jobs it has lost, reaps
outbox   encodes, stores, completes (workers/outbox.py)
"""

import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from types import FrameType
from typing import TYPE_CHECKING

import redis

from models.media.base import Array
from workers.backoff import Backoff
from workers.compute import Engine
from workers.errors import DeadlineExceeded, InternalError
from workers.in_flight import InFlight
from workers.intake import Arrival, Inbox, Intake, Lost, Task
from workers.loader import Compute, Loader
from workers.messages import Resolved
from workers.metrics import BATCH_SIZE, STEP_SECONDS
from workers.moderation import Moderation
from workers.outbox import Computed, Failed, Outbox, PreviewReady, ProgressMade, Released
from workers.queue.consumer import Claim, Consumer, Destination
from workers.results import ResultStore
from workers.traces import working_for

if TYPE_CHECKING:
    from workers.spans import Spans

logger = logging.getLogger(__name__)

IDLE_TICK_S = 0.5
REPORT_EVERY_S = 0.25
REPEATED_SIGNAL_S = 1.0  # a terminal and a supervisor may both pass on the same Ctrl-C
FLUSH_S = 10.0  # results that were computed when the time to stop has come are sent for so long
BUSY_CHECK_S = 0.05  # for the check of the seed promise at a time, while jobs run
IDLE_CHECK_S = 0.02  # while none does: a job that comes waits for the end of it
NUM_SHARES = 5  # of the time while jobs run; the check gets one


@dataclass(frozen=True)
class WorkerConfig:
    """How long things may take, how often they are tried, what is told of them, and who checks outputs."""

    lease_s: float = 5.0
    max_tries: int = 3
    grace_s: float = 20.0
    ageing_s: float = 30.0
    tells_provenance: bool = True
    device: str = ""  # what the engine computes on, as is told to administrators
    moderation: Moderation | None = None
    spans: "Spans | None" = None


class Worker:
    """Runs until ``request_stop`` or a signal, then drains.

    read_sources: reads and decodes what came in with a request; called on the intake thread. pipelines: the
    names of those that the engine has, whose jobs this worker takes.
    """

    def __init__(
        self,
        redis_url: str,
        engine: Engine,
        results: ResultStore,
        config: WorkerConfig,
        *,
        read_sources: Callable[[Resolved], tuple[Array, ...]],
        pipelines: Collection[str],
    ) -> None:
        self._consumer = Consumer(
            redis_url,
            pipelines,
            lease_s=config.lease_s,
            max_tries=config.max_tries,
            ageing_s=config.ageing_s,
        )
        self._consumer.device = config.device
        self._engine = engine
        self._config = config
        self._in_flight = InFlight()
        self._inbox: Inbox = SimpleQueue()
        self._outbox = Outbox(
            self._consumer,
            results,
            self._in_flight.remove,
            tells_provenance=config.tells_provenance,
            moderation=config.moderation,
            spans=config.spans,
        )
        self._intake = Intake(
            self._consumer,
            self._in_flight,
            self._inbox,
            self._outbox,
            read_sources=read_sources,
        )
        self._tasks: deque[Task] = deque()  # of the compute thread
        self._loader: Loader | None = None
        self._running: dict[str, Claim] = {}  # jobs in the engine; of the compute thread
        self._stop_by: float | None = None
        self._has_ended = threading.Event()
        self._reports_at = 0.0
        self._checks_at = 0.0
        self._may_check = True

    @property
    def name(self) -> str:
        return self._consumer.name

    def load_with(self, make_loader: Callable[[Consumer, InFlight, Compute], Loader]) -> None:
        """Let a loader say from now on which pipelines there are; before ``run``."""
        self._loader = make_loader(self._consumer, self._in_flight, self._run_slices)

    def request_stop(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Take nothing new and end within the grace period; asked again, at once."""
        now = time.monotonic()
        if self._stop_by is None:
            self._stop_by = now + self._config.grace_s
        elif now > self._stop_by - self._config.grace_s + REPEATED_SIGNAL_S:
            self._stop_by = now
        self._intake.stop()
        self._inbox.put(None)

    def run(self) -> None:
        """Work until asked to stop, then finish or hand back what runs."""
        control = threading.Thread(target=self._keep_control, name="control", daemon=True)
        self._consumer.seed_verdicts = self._engine.seed_verdicts()
        self._consumer.phase = "ready"
        self._outbox.start()
        control.start()
        self._intake.start()
        if self._loader is not None:
            self._loader.start()
        logger.info("worker=%s ready", self.name)
        to: Destination = "quarantine"  # should the engine be beyond repair
        try:
            self._compute()
            to = "front"
        finally:
            if self._stop_by is None:
                self._stop_by = time.monotonic()
            if self._loader is not None:
                self._loader.stop()
            self._intake.stop()
            self._intake.join()
            self._release_all(to)
            self._outbox.close(FLUSH_S)
            self._has_ended.set()
            control.join()
            self._consumer.close()
            logger.info("worker=%s ended", self.name)

    # --- the compute thread ----------------------------------------------------------------------------

    def _compute(self) -> None:
        while True:
            self._in_flight.arrived((), self._engine.free_slots)
            self._read_inbox()
            if self._stop_by is not None:
                self._consumer.phase = "draining"
                if self._engine.is_idle or time.monotonic() >= self._stop_by:
                    return
            self._advance_task()
            self._drop_overdue()
            if not self._engine.is_idle:
                self._step()
                self._report()
            self._check_seeds()

    def _read_inbox(self) -> None:
        """Admit and drop what has come; wait for something if the engine has nothing to do."""
        has_more = bool(self._tasks) or self._has_to_check
        is_waiting = self._engine.is_idle and self._stop_by is None and not has_more
        while True:
            try:
                item = self._inbox.get(block=is_waiting, timeout=IDLE_TICK_S)
            except Empty:
                return
            is_waiting = False
            if isinstance(item, Arrival):
                self._admit(item)
            elif isinstance(item, Task):
                self._tasks.append(item)
            elif isinstance(item, Lost) and self._running.get(item.claim.job_id) == item.claim:
                self._drop(item.claim)

    def _admit(self, arrival: Arrival) -> None:
        ours = [(claim, work) for claim, work in arrival.works if self._in_flight.has(claim)]
        self._running.update((claim.job_id, claim) for claim, _ in ours)
        with self._isolated():
            self._engine.admit([work for _, work in ours])
        self._in_flight.arrived(arrival.claims, self._engine.free_slots)

    def _advance_task(self) -> None:
        """Do a slice of what other threads want done here."""
        if not self._tasks:
            return
        task = self._tasks[0]
        try:
            next(task.slices)
            return
        except StopIteration:
            pass
        except Exception as error:
            task.error = error
        self._tasks.popleft()
        self._consumer.seed_verdicts = self._engine.seed_verdicts()
        self._in_flight.arrived((), self._engine.free_slots)
        task.has_ended.set()

    def _run_slices(self, slices: Iterator[None]) -> None:
        """Have slices run on the compute thread; called on another. Raises: what they raise."""
        task = Task(slices)
        self._inbox.put(task)
        while not task.has_ended.wait(IDLE_TICK_S):
            if self._has_ended.is_set():
                raise InternalError("the worker ends")
        if task.error is not None:
            raise task.error

    @property
    def _has_to_check(self) -> bool:
        return self._may_check and self._engine.needs_check

    def _check_seeds(self) -> None:
        """Go on with the check of the seed promise, if it is to be done and other work leaves time for it."""
        start = time.monotonic()
        is_busy = not self._engine.is_idle
        if not self._has_to_check or (is_busy and start < self._checks_at):
            return
        try:
            self._engine.check_seeds(BUSY_CHECK_S if is_busy else IDLE_CHECK_S)
        except Exception:  # the check is a job of its own: no client's job fails with it
            logger.exception("the seed promise could not be checked")
            self._may_check = False
        self._consumer.seed_verdicts = self._engine.seed_verdicts()
        end = time.monotonic()
        self._checks_at = end + (NUM_SHARES - 1) * (end - start)

    def _step(self) -> None:
        meter = self._consumer.meter
        meter.observe(BATCH_SIZE, sum(claim.num_slots for claim in self._running.values()))
        began_s = time.perf_counter()
        with self._isolated():
            ended = self._engine.step()
            meter.observe(STEP_SECONDS, time.perf_counter() - began_s)
            for finished in ended:
                claim = self._running.pop(finished.job_id)
                if finished.error is not None:
                    self._outbox.put(Failed(claim, finished.error, finished.progress, finished.batch_size))
                else:
                    self._outbox.put(Computed(claim, finished))
            for job_id, preview in self._engine.previews().items():
                if job_id in self._running:  # it may have ended in this step
                    self._outbox.put(PreviewReady(self._running[job_id], preview))

    @contextmanager
    def _isolated(self) -> Iterator[None]:
        """Let an exception of the engine cost only the job that caused it: each is tried again alone."""
        try:
            yield
        except Exception:  # the job boundary
            claims = list(self._running.values())
            names = ",".join(claim.job_id for claim in claims)
            with working_for(claims[0].trace if len(claims) == 1 else None):
                logger.exception("job_id=%s the engine raised", names)
            self._engine.drop([claim.job_id for claim in claims])
            self._running.clear()
            for claim in claims:
                if len(claims) == 1:
                    self._outbox.put(Failed(claim, InternalError("The job could not be computed.")))
                else:
                    self._outbox.put(Released(claim, "quarantine"))

    def _drop(self, claim: Claim) -> None:
        del self._running[claim.job_id]
        self._engine.drop([claim.job_id])
        with working_for(claim.trace):
            logger.info("job_id=%s dropped", claim.job_id)

    def _drop_overdue(self) -> None:
        for claim in [claim for claim in self._running.values() if claim.is_overdue]:
            self._drop(claim)
            message = "The job was not done within its deadline_s."
            self._outbox.put(Failed(claim, DeadlineExceeded(message)))

    def _report(self) -> None:
        now = time.monotonic()
        if now < self._reports_at:
            return
        self._reports_at = now + REPORT_EVERY_S
        progress = self._engine.progress()
        told = ((self._running[job_id], each) for job_id, each in progress.items())
        self._outbox.put(ProgressMade(tuple(told)))

    def _release_all(self, to: Destination) -> None:
        claims = list(self._running.values())
        while not self._inbox.empty():
            item = self._inbox.get()
            if isinstance(item, Arrival):
                claims.extend(claim for claim, _ in item.works)
        for claim in claims:
            self._outbox.put(Released(claim, to))

    # --- the control thread ----------------------------------------------------------------------------

    def _keep_control(self) -> None:
        heartbeat_every_s = self._config.lease_s / 3
        next_heartbeat = 0.0
        phase, loads = self._consumer.phase, self._consumer.loads
        backoff = Backoff()
        while not self._has_ended.is_set():
            try:
                now_told = self._consumer.phase, self._consumer.loads
                if time.monotonic() >= next_heartbeat or now_told != (phase, loads):
                    next_heartbeat = time.monotonic() + heartbeat_every_s
                    phase, loads = now_told
                    for claim in self._consumer.heartbeat(self._in_flight.all()):
                        self._lose(claim)
                    self._consumer.reap()
                wait_s = max(0.01, min(next_heartbeat - time.monotonic(), IDLE_TICK_S))
                revoked = self._consumer.wait_for_revoked(wait_s)
                revoked_claim = self._in_flight.find(*revoked) if revoked is not None else None
                if revoked_claim is not None:
                    self._lose(revoked_claim)
                backoff.reset()
            except redis.RedisError as error:
                logger.warning("the queue server is away: %s", type(error).__name__)
                next_heartbeat = 0.0
                backoff.wait()
            except Exception:
                logger.exception("control")
                backoff.wait()

    def _lose(self, claim: Claim) -> None:
        """Stop a job that is no longer this worker's."""
        self._in_flight.remove(claim)
        self._inbox.put(Lost(claim))


def stop_on_signals(worker: Worker) -> None:
    """Drain at SIGTERM or SIGINT; end at once at the second."""
    signal.signal(signal.SIGTERM, worker.request_stop)
    signal.signal(signal.SIGINT, worker.request_stop)
