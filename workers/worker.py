"""The worker: takes jobs off the queue, feeds the engine, completes each job; knows no tensors.

main     the compute loop, which alone touches the engine; no network, no disk
intake   claims jobs while the engine has free slots
control  says that the worker lives, hears which jobs are no longer its own, reaps
outbox   encodes, stores, completes (workers/outbox.py)
"""

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Literal

import redis

from workers.artifacts import ArtifactStore
from workers.catalog import Catalog
from workers.errors import DeadlineExceeded, InternalError
from workers.holdings import Holdings
from workers.metrics import BATCH_SIZE, STEP_SECONDS
from workers.outbox import Computed, Failed, HandBack, Outbox, Report, Shown, Store
from workers.rq_worker import Claim, Claims, RQWorker
from workers.settings import WorkerSettings
from workers.work import Engine, Work

logger = logging.getLogger(__name__)

IDLE_TICK_S = 0.5
REPORT_EVERY_S = 0.25
MAX_BACKOFF_S = 1.0
ECHO_S = 1.0  # a terminal and a supervisor may both pass on the same Ctrl-C
FLUSH_S = 10.0  # results that were computed when the time to stop has come are sent for so long


@dataclass(frozen=True)
class WorkerConfig:
    """How long things may take, and how often they are tried."""

    lease_s: float = 5.0
    max_tries: int = 3
    grace_s: float = 20.0
    ageing_s: float = 30.0


@dataclass(frozen=True)
class _Dismissal:
    claim: Claim


class Worker:
    """Runs until ``request_stop`` or a signal, then drains."""

    def __init__(self, redis_url: str, engine: Engine, store: Store, config: WorkerConfig) -> None:
        self._link = RQWorker(
            redis_url, lease_s=config.lease_s, max_tries=config.max_tries, ageing_s=config.ageing_s
        )
        self._engine = engine
        self._config = config
        self._holdings = Holdings()
        self._inbox: SimpleQueue[Claims | _Dismissal | None] = SimpleQueue()
        self._outbox = Outbox(self._link, store, self._holdings.remove)
        self._running: dict[str, Claim] = {}  # jobs in the engine; of the compute thread
        self._stop_by: float | None = None
        self._has_ended = threading.Event()
        self._reports_at = 0.0

    @property
    def name(self) -> str:
        return self._link.name

    def request_stop(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Take nothing new and end within the grace period; asked again, at once."""
        now = time.monotonic()
        if self._stop_by is None:
            self._stop_by = now + self._config.grace_s
        elif now > self._stop_by - self._config.grace_s + ECHO_S:
            self._stop_by = now
        self._inbox.put(None)

    def run(self) -> None:
        """Work until asked to stop, then finish or hand back what runs."""
        intake = threading.Thread(target=self._take_jobs, name="intake", daemon=True)
        control = threading.Thread(target=self._keep_control, name="control", daemon=True)
        self._link.phase = "ready"
        self._outbox.start()
        control.start()
        intake.start()
        logger.info("worker=%s ready", self.name)
        how: Literal["back", "alone"] = "alone"  # should the engine be beyond repair
        try:
            self._compute()
            how = "back"
        finally:
            if self._stop_by is None:
                self._stop_by = time.monotonic()
            intake.join()
            self._hand_back_all(how)
            self._outbox.close(FLUSH_S)
            self._has_ended.set()
            control.join()
            self._link.close()
            logger.info("worker=%s ended", self.name)

    # --- the compute thread ----------------------------------------------------------------------------

    def _compute(self) -> None:
        while True:
            self._holdings.arrived((), self._engine.free_slots)
            self._read_inbox()
            if self._stop_by is not None:
                self._link.phase = "draining"
                if self._engine.is_idle or time.monotonic() >= self._stop_by:
                    return
            self._drop_overdue()
            if not self._engine.is_idle:
                self._step()
                self._report()

    def _read_inbox(self) -> None:
        """Admit and drop what has come; wait for something if the engine has nothing to do."""
        is_waiting = self._engine.is_idle and self._stop_by is None
        while True:
            try:
                item = self._inbox.get(block=is_waiting, timeout=IDLE_TICK_S)
            except Empty:
                return
            is_waiting = False
            if isinstance(item, Claims):
                self._admit(item)
            elif isinstance(item, _Dismissal) and self._running.get(item.claim.job_id) == item.claim:
                self._drop(item.claim)

    def _admit(self, claims: Claims) -> None:
        ours = [claim for claim in claims.jobs if self._holdings.has(claim)]
        self._running.update((claim.job_id, claim) for claim in ours)
        with self._isolated():
            self._engine.admit([Work(claim.job_id, claim.request) for claim in ours])
        self._holdings.arrived(claims.jobs, self._engine.free_slots)

    def _step(self) -> None:
        meter = self._link.meter
        meter.observe(BATCH_SIZE, sum(claim.num_slots for claim in self._running.values()))
        began_s = time.perf_counter()
        with self._isolated():
            ended = self._engine.step()
            meter.observe(STEP_SECONDS, time.perf_counter() - began_s)
            for finished in ended:
                claim = self._running.pop(finished.job_id)
                if finished.error is not None:
                    self._outbox.put(Failed(claim, finished.error))
                else:
                    self._outbox.put(Computed(claim, finished))
            for job_id, preview in self._engine.previews().items():
                self._outbox.put(Shown(self._running[job_id], preview))

    @contextmanager
    def _isolated(self) -> Iterator[None]:
        """Let an exception of the engine cost only the job that caused it: each is tried again alone."""
        try:
            yield
        except Exception:  # the job boundary
            claims = list(self._running.values())
            names = ",".join(claim.job_id for claim in claims)
            logger.exception("job_id=%s the engine raised", names)
            self._engine.drop([claim.job_id for claim in claims])
            self._running.clear()
            for claim in claims:
                if len(claims) == 1:
                    self._outbox.put(Failed(claim, InternalError("The job could not be computed.")))
                else:
                    self._outbox.put(HandBack(claim, "alone"))

    def _drop(self, claim: Claim) -> None:
        del self._running[claim.job_id]
        self._engine.drop([claim.job_id])
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
        reports = ((self._running[job_id], each) for job_id, each in progress.items())
        self._outbox.put(Report(tuple(reports)))

    def _hand_back_all(self, how: Literal["back", "alone"]) -> None:
        claims = list(self._running.values())
        while not self._inbox.empty():
            item = self._inbox.get()
            if isinstance(item, Claims):
                claims.extend(item.jobs)
        for claim in claims:
            self._outbox.put(HandBack(claim, how))

    # --- the other threads -----------------------------------------------------------------------------

    def _take_jobs(self) -> None:
        """Claim jobs while slots are free; in Redis waits only who has a free slot."""
        must_drain = False
        backoff = _Backoff()
        while self._stop_by is None:
            num_free = self._holdings.wait_for_slots(until_idle=must_drain, timeout_s=IDLE_TICK_S)
            if not num_free:
                continue
            try:
                claims = self._link.claim(num_free, is_idle=not self._holdings.all())
                must_drain = claims.must_drain
                if claims.jobs:
                    for older in self._holdings.add(claims.jobs):
                        self._inbox.put(_Dismissal(older))
                    self._inbox.put(claims)
                elif not must_drain:
                    self._link.wait_for_work()
                backoff.reset()
            except redis.RedisError as error:
                logger.warning("can't take jobs: %s", type(error).__name__)
                backoff.wait()
            except Exception:
                logger.exception("can't take jobs")
                backoff.wait()

    def _keep_control(self) -> None:
        beat_every_s = self._config.lease_s / 3
        next_beat = 0.0
        phase = self._link.phase
        backoff = _Backoff()
        while not self._has_ended.is_set():
            try:
                if time.monotonic() >= next_beat or phase != self._link.phase:
                    next_beat = time.monotonic() + beat_every_s
                    phase = self._link.phase
                    for claim in self._link.beat(self._holdings.all()):
                        self._dismiss(claim)
                    self._link.reap()
                wait_s = max(0.01, min(next_beat - time.monotonic(), IDLE_TICK_S))
                dismissed = self._link.wait_for_dismissal(wait_s)
                if dismissed is not None:
                    dismissed_claim = self._holdings.find(*dismissed)
                    if dismissed_claim is not None:
                        self._dismiss(dismissed_claim)
                backoff.reset()
            except redis.RedisError as error:
                logger.warning("the queue server is away: %s", type(error).__name__)
                next_beat = 0.0
                backoff.wait()
            except Exception:
                logger.exception("control")
                backoff.wait()

    def _dismiss(self, claim: Claim) -> None:
        """Let go a job that was cancelled, ended by its deadline, or given to another worker."""
        self._holdings.remove(claim)
        self._inbox.put(_Dismissal(claim))


class _Backoff:
    """Waits that grow while something fails."""

    def __init__(self) -> None:
        self._wait_s = 0.02

    def reset(self) -> None:
        self._wait_s = 0.02

    def wait(self) -> None:
        time.sleep(self._wait_s)
        self._wait_s = min(2 * self._wait_s, MAX_BACKOFF_S)


def run_worker(settings: WorkerSettings) -> None:
    """Load the pipelines, warm the engine, and work until SIGTERM or SIGINT.

    Raises: ConfigError when there is no pipeline to serve, or one can't be used.
    """
    from workers.loading import load_engine

    assert settings.redis_url is not None
    catalog = Catalog.load(settings.weights_dir, settings.pipelines)
    engine = load_engine(settings, catalog)
    engine.warm_up()
    config = WorkerConfig(settings.lease_s, settings.max_tries, settings.drain_grace_s, settings.ageing_s)
    worker = Worker(settings.redis_url, engine, ArtifactStore(settings.artifacts_dir), config)
    stop_on_signals(worker)
    worker.run()


def stop_on_signals(worker: Worker) -> None:
    """Drain at SIGTERM or SIGINT; end at once at the second."""
    signal.signal(signal.SIGTERM, worker.request_stop)
    signal.signal(signal.SIGINT, worker.request_stop)
