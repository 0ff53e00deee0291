"""Jobs under random kills and pauses of the workers and the queue server: nothing lost, nothing twice.

A short run by default, and long ones, with other seeds, among the tests marked ``hours`` (``make test-all``).
"""

import asyncio
import hashlib
import logging
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis

from app.queue import JobQueue
from models.media.image import encode_image
from tests.fake_engine import grey_of, pixels_of
from tests.workers.conftest import WorkerProcesses
from tests.workers.toy_worker import PIPELINE
from workers.errors import QueueUnavailable
from workers.messages import JobView, Resolved
from workers.queue import embedded_server
from workers.queue.records import TOTALS
from workers.results import ResultStore

logger = logging.getLogger(__name__)

NUM_WORKERS = 3
NUM_CLIENTS = 24
LEASE_S = 1.0
MAX_SAMPLES = 3
FIRST_SEED = 1000  # those that do harm are below
ENDS = {"succeeded", "failed", "cancelled"}


@dataclass
class Chaos:
    """Kills and pauses at random; whatever died is started again, as a supervisor would."""

    server: embedded_server.EmbeddedServer
    processes: WorkerProcesses
    dice: random.Random
    num_faults: int
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.servers = [self.server]
        self.workers = [self._new_worker() for _ in range(NUM_WORKERS)]

    async def run(self) -> None:
        while self.counts.total() < self.num_faults:
            await asyncio.sleep(self.dice.uniform(0.2, 0.7))
            fault = self.dice.choice(
                (self.kill_worker, self.kill_worker, self.pause_worker, self.kill_server)
            )
            self.counts[fault.__name__] += 1
            await fault()

    async def kill_worker(self) -> None:
        victim = self.dice.randrange(NUM_WORKERS)
        self.workers[victim].kill()
        self.workers[victim] = self._new_worker()

    async def pause_worker(self) -> None:
        victim = self.dice.choice(self.workers)
        victim.send_signal(signal.SIGSTOP)
        await asyncio.sleep(self.dice.uniform(0.5, 2.5) * LEASE_S)
        victim.send_signal(signal.SIGCONT)

    async def kill_server(self) -> None:
        os.kill(self.servers[-1].pid, signal.SIGKILL)
        await asyncio.sleep(self.dice.uniform(0, 1))
        self.servers.append(await asyncio.to_thread(embedded_server.start, self.server.data_dir))

    def end(self) -> None:
        self.processes.end()
        for server in self.servers:
            server.stop()

    def _new_worker(self) -> "embedded_server.subprocess.Popen[bytes]":
        return self.processes.start(lease_s=LEASE_S, step_s=0.005, max_tries=20, wait=False)


@dataclass
class Clients:
    """Submit jobs and wait for each, through the front end's queue, which also goes away at times."""

    redis_url: str
    dice: random.Random
    num_jobs: int
    pause_s: float  # at most, of a client between two jobs
    ended: dict[str, tuple[Resolved, JobView]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.queues = [self._new_queue()]
        self._numbers = iter(range(self.num_jobs))

    @property
    def queue(self) -> JobQueue:
        return self.queues[-1]

    async def run(self) -> None:
        replacing = asyncio.create_task(self._replace())
        await asyncio.gather(*(self._client() for _ in range(NUM_CLIENTS)))
        replacing.cancel()

    async def close(self) -> None:
        for queue in self.queues:
            await queue.close()

    async def _client(self) -> None:
        for number in self._numbers:
            await asyncio.sleep(self.dice.uniform(0, self.pause_s))
            request = Resolved(
                operation="generate",
                pipeline=PIPELINE,
                seed=FIRST_SEED + MAX_SAMPLES * number,
                options={"num_steps": self.dice.randint(1, 200)},
                num_samples=self.dice.randint(1, MAX_SAMPLES),
                priority=self.dice.choice(("interactive", "batch")),
                format="png",
            )
            job_id = ""
            while not job_id:
                try:
                    job_id = (await self.queue.submit(request)).id
                except QueueUnavailable:
                    await asyncio.sleep(0.05)
            while True:
                try:
                    view = await self.queue.wait(job_id, self.dice.uniform(0.1, 5))
                except QueueUnavailable:
                    await asyncio.sleep(0.05)
                    continue
                if view.status.is_terminal:
                    break
            self.ended[job_id] = request, view

    async def _replace(self) -> None:
        """Another front end takes over; the clients of the one before see its end."""
        while True:
            await asyncio.sleep(2)
            self.queues.append(self._new_queue())

    def _new_queue(self) -> JobQueue:
        return JobQueue(self.redis_url, max_length=100, result_ttl_s=3600)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("num_faults", "num_jobs", "seed"),
    [(15, 150, 0), *(pytest.param(60, 1000, seed, marks=pytest.mark.hours) for seed in range(1, 6))],
)
def test_nothing_is_lost_and_nothing_done_twice(
    own_redis, tmp_path: Path, num_faults: int, num_jobs: int, seed: int
) -> None:
    processes = WorkerProcesses(own_redis.url, tmp_path)
    chaos = Chaos(own_redis, processes, random.Random(seed), num_faults)
    pause_s = num_faults * NUM_CLIENTS / num_jobs
    clients = Clients(own_redis.url, random.Random(seed), num_jobs, pause_s)
    store = ResultStore(chaos.processes.data_dir / "results")

    async def run() -> None:
        start = time.monotonic()
        faults = asyncio.create_task(chaos.run())
        try:
            await clients.run()
            await faults
            await check()
        finally:
            await clients.close()
        tries = Counter(view.num_tries for _, view in clients.ended.values())
        took_s = time.monotonic() - start
        logger.info("%d jobs, %s, tries %s, %.0f s", num_jobs, dict(chaos.counts), dict(tries), took_s)

    async def check() -> None:
        for job_id, (request, view) in clients.ended.items():
            assert view.status == "succeeded", (job_id, view)
            assert await clients.queue.get(job_id) == view, "an end is final"
            for index in range(request.num_samples):
                expected = encode_image(pixels_of(grey_of(request.seed, index)), request.format)
                assert store.read(job_id, index).data == expected, "the bytes of the undisturbed run"
                assert view.result.outputs[index].sha256 == hashlib.sha256(expected).hexdigest()
        assert (await clients.queue.checks.check()).queue_length == 0

    try:
        asyncio.run(run())
        assert len(clients.ended) == num_jobs
        with redis.Redis.from_url(own_redis.url, decode_responses=True) as client:
            ends = [int(n) for name, n in client.hgetall(TOTALS).items() if name.startswith("jobs_ended|")]
            assert sum(ends) == num_jobs, "each ended once"
            assert client.zcard("smalti:leases") == 0
    finally:
        chaos.end()
