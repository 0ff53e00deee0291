"""Workers as real processes on a real queue, with an engine that draws noise."""

import asyncio
import hashlib
import os
import signal
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from PIL import Image

from app.queue import JobQueue
from tests.workers.conftest import WorkerProcesses
from tests.workers.toy_worker import BAD_PIXELS, POISON, RAISES, ToyEngine, toy_images
from workers import redis_server
from workers.artifacts import ArtifactStore
from workers.errors import StorageFull
from workers.messages import DecodeRequest, EncodeRequest, GenerateRequest, JobStatus, JobView
from workers.worker import Worker, WorkerConfig


def request_of(seed: int = 0, **fields: Any) -> GenerateRequest:
    return GenerateRequest(**{"pipeline": "toy", "class_label": 0, "seed": seed, "num_steps": 1, **fields})


def run(redis_url: str, use: Callable[[JobQueue], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        queue = JobQueue(redis_url, max_length=2000, result_ttl_s=60)
        try:
            return await use(queue)
        finally:
            await queue.close()

    return asyncio.run(main())


def compute(redis_url: str, *requests: Any, timeout_s: float = 20) -> list[JobView]:
    """Submit requests and return their ended jobs."""

    async def use(queue: JobQueue) -> list[JobView]:
        views = [await queue.submit(request) for request in requests]
        return [await queue.wait(view.id, timeout_s) for view in views]

    return run(redis_url, use)


def assert_right(view: JobView, request: GenerateRequest, artifacts: Path) -> None:
    """The job succeeded with the noise of its seed."""
    assert view.status == JobStatus.SUCCEEDED, view.error
    assert view.result.seed == request.seed
    assert len(view.result.images) == request.num_images
    for index, (reference, pixels) in enumerate(zip(view.result.images, toy_images(request), strict=True)):
        path = artifacts / view.id[:2] / view.id / f"{index}.{request.format}"
        assert hashlib.sha256(path.read_bytes()).hexdigest() == reference.sha256
        assert np.array_equal(np.asarray(Image.open(path).convert("L")), pixels[:, :, 0])


@pytest.fixture
def in_process(redis_url: str, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Run a worker of this process in a thread, around ``use(queue)``."""

    def work(
        use: Callable[[JobQueue], Awaitable[Any]], engine: ToyEngine, store: Any = None, **config: Any
    ) -> Any:
        worker = Worker(
            redis_url,
            engine,
            store or ArtifactStore(tmp_path / "artifacts"),
            WorkerConfig(**{"lease_s": 1, **config}),
        )
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            return run(redis_url, use)
        finally:
            worker.request_stop()
            thread.join(10)
            assert not thread.is_alive()

    return work


def test_jobs_are_computed_stored_and_completed(redis_url, worker_processes):
    worker_processes.start()
    requests = [
        request_of(seed, num_images=1 + seed % 3, format="webp" if seed % 2 else "png") for seed in range(20)
    ]
    requests[3] = request_of(3, return_codes=True)
    views = compute(redis_url, *requests)
    for view, request in zip(views, requests, strict=True):
        assert_right(view, request, worker_processes.artifacts)
        assert view.num_tries == 1
    assert views[3].result.codes is not None
    assert views[4].result.codes is None


def test_encode_and_decode_give_their_own_results(redis_url, in_process):
    async def use(queue: JobQueue) -> None:
        decode = await queue.submit(DecodeRequest(pipeline="toy", codes=[[[1]]], tokenizer="0" * 16))
        assert (await queue.wait(decode.id, 10)).result.operation == "decode"
        encode = await queue.submit(EncodeRequest(pipeline="toy", image="QUJDRA=="))
        view = await queue.wait(encode.id, 10)
        assert view.status == JobStatus.FAILED, "the toy makes no codes unless asked"
        assert view.error.code == "internal_error"

    in_process(use, ToyEngine())


def test_a_killed_workers_jobs_end_elsewhere(redis_url, worker_processes):
    victim = worker_processes.start(lease_s=1)
    requests = [request_of(seed, num_steps=200) for seed in range(8)]  # 0.4 s

    async def use(queue: JobQueue) -> tuple[list[JobView], float]:
        ids = [(await queue.submit(request)).id for request in requests]
        await until(queue, ids, JobStatus.RUNNING)
        victim.kill()
        killed_at = time.monotonic()
        worker_processes.start(lease_s=1, step_s=0.0005)
        views = [await queue.wait(job_id, 20) for job_id in ids]
        return views, time.monotonic() - killed_at

    views, took_s = run(redis_url, use)
    for view, request in zip(views, requests, strict=True):
        assert_right(view, request, worker_processes.artifacts)
        assert view.num_tries == 2
    assert took_s < 8


def test_a_job_that_kills_its_workers_fails_alone_after_its_tries(redis_url, worker_processes):
    requests = [request_of(seed, num_steps=20) for seed in range(6)]
    requests[2] = request_of(2, class_label=POISON)

    async def use(queue: JobQueue) -> list[JobView]:
        ids = [(await queue.submit(request)).id for request in requests]
        for _ in range(3):
            process = worker_processes.start(lease_s=1, wait=False)
            await asyncio.to_thread(process.wait, 20)
        worker_processes.start(lease_s=1)
        return [await queue.wait(job_id, 20) for job_id in ids]

    views = run(redis_url, use)
    assert views[2].status == JobStatus.FAILED
    assert views[2].error.code == "worker_lost"
    assert views[2].num_tries == 3
    for index in (0, 1, 3, 4, 5):
        assert_right(views[index], requests[index], worker_processes.artifacts)
        assert views[index].num_tries <= 2, "a neighbour is taken down once"


def test_an_exception_costs_only_its_job(redis_url, in_process, tmp_path):
    engine = ToyEngine(step_s=0.001)
    requests = [request_of(seed, num_steps=30) for seed in range(6)]
    requests[2] = request_of(2, class_label=RAISES)
    requests[4] = request_of(4, class_label=BAD_PIXELS)

    async def use(queue: JobQueue) -> list[JobView]:
        ids = [(await queue.submit(request)).id for request in requests]
        return [await queue.wait(job_id, 20) for job_id in ids]

    views = in_process(use, engine)
    for index, (view, request) in enumerate(zip(views, requests, strict=True)):
        if index in (2, 4):
            assert view.error.code == "internal_error"
            assert "/" not in view.error.message
        else:
            assert_right(view, request, tmp_path / "artifacts")


def test_a_cancelled_job_leaves_its_neighbours_alone(redis_url, in_process, tmp_path):
    async def use(queue: JobQueue) -> str:
        long, neighbour = request_of(1, num_steps=200), request_of(2, num_steps=20)
        ids = [(await queue.submit(request)).id for request in (long, neighbour)]
        await until(queue, ids, JobStatus.RUNNING)
        assert (await queue.cancel(ids[0])).status == JobStatus.CANCELLED
        view = await queue.wait(ids[1], 20)
        assert_right(view, neighbour, tmp_path / "artifacts")
        assert (await queue.get(ids[0])).status == JobStatus.CANCELLED
        return ids[0]

    engine = ToyEngine(step_s=0.05)
    cancelled = in_process(use, engine, lease_s=60)
    assert engine.dropped[cancelled] < 100, "told before the next beat, which comes after 20 s, or 400 steps"


def test_a_running_job_ends_at_its_deadline(redis_url, in_process):
    async def use(queue: JobQueue) -> str:
        view = await queue.submit(request_of(1, num_steps=200, deadline_s=0.2))
        view = await queue.wait(view.id, 20)
        assert view.error.code == "deadline_exceeded"
        assert (await queue.wait((await queue.submit(request_of(2))).id, 10)).status == JobStatus.SUCCEEDED
        return view.id

    engine = ToyEngine(step_s=0.01)
    overdue = in_process(use, engine)
    assert engine.dropped[overdue] < 25, "20 steps fit at most"


def test_progress_is_told(redis_url, in_process):
    async def use(queue: JobQueue) -> None:
        view = await queue.submit(request_of(1, num_steps=100))
        steps = [event.progress.step async for event in queue.events(view.id) if event.progress]
        assert len(steps) >= 3
        assert steps == sorted(steps)
        assert steps[-1] <= 100

    in_process(use, ToyEngine(step_s=0.01))


def test_a_full_disk_is_a_clear_failure(redis_url, in_process):
    class FullStore:
        def put(self, *_: Any) -> Any:
            raise StorageFull("the disk for results is full; try again later")

    async def use(queue: JobQueue) -> None:
        view = await queue.wait((await queue.submit(request_of(1))).id, 10)
        assert view.error.code == "storage_full"

    in_process(use, ToyEngine(), FullStore())


def test_a_paused_workers_late_results_change_nothing(redis_url, worker_processes):
    paused = worker_processes.start(lease_s=1)
    requests = [request_of(seed, num_steps=150) for seed in range(3)]

    async def use(queue: JobQueue) -> None:
        ids = [(await queue.submit(request)).id for request in requests]
        await until(queue, ids, JobStatus.RUNNING)
        paused.send_signal(signal.SIGSTOP)
        worker_processes.start(lease_s=1, step_s=0.0005)
        views = [await queue.wait(job_id, 20) for job_id in ids]
        paused.send_signal(signal.SIGCONT)
        again = await queue.wait((await queue.submit(request_of(9))).id, 20)
        await asyncio.sleep(0.7)
        assert again.status == JobStatus.SUCCEEDED
        assert [await queue.get(job_id) for job_id in ids] == views
        for view, request in zip(views, requests, strict=True):
            assert_right(view, request, worker_processes.artifacts)

    run(redis_url, use)
    assert paused.poll() is None


def test_sigterm_drains_and_hands_back_what_takes_too_long(redis_url, worker_processes):
    worker = worker_processes.start(step_s=0.01, grace_s=1)

    async def use(queue: JobQueue) -> None:
        short = await queue.submit(request_of(1, num_steps=60))
        long = await queue.submit(request_of(2, num_steps=200))
        await until(queue, [short.id, long.id], JobStatus.RUNNING)
        worker.send_signal(signal.SIGTERM)
        while (await queue.check()).num_draining_workers != 1:
            await asyncio.sleep(0.01)
        late = await queue.submit(request_of(3))
        assert (await queue.check()).num_ready_workers == 0
        assert await asyncio.to_thread(worker.wait, 10) == 0
        assert (await queue.get(short.id)).status == JobStatus.SUCCEEDED
        for view in (await queue.get(long.id), await queue.get(late.id)):
            assert (view.status, view.num_tries) == (JobStatus.QUEUED, 0)
        assert (await queue.get(long.id)).queue_position == 0, "handed back to the front"
        assert (await queue.check()).num_draining_workers == 0
        worker_processes.start()
        for view in (long, late):
            assert (await queue.wait(view.id, 10)).status == JobStatus.SUCCEEDED

    run(redis_url, use)


def test_results_computed_while_the_server_was_away_are_kept(own_redis, tmp_path):
    processes = WorkerProcesses(own_redis.url, tmp_path)
    processes.start(lease_s=5, step_s=0.01)
    requests = [request_of(seed, num_steps=50) for seed in range(4)]

    async def use(queue: JobQueue) -> None:
        ids = [(await queue.submit(request)).id for request in requests]
        await until(queue, ids, JobStatus.RUNNING)
        os.kill(own_redis.pid, signal.SIGKILL)
        await asyncio.sleep(1)
        again = await asyncio.to_thread(redis_server.start, own_redis.data_dir)
        for job_id, request in zip(ids, requests, strict=True):
            view = await queue.wait(job_id, 10)
            assert_right(view, request, processes.artifacts)
            assert view.num_tries == 1
        processes.end()
        await asyncio.to_thread(again.stop)

    run(own_redis.url, use)


def test_a_job_that_computes_nothing_costs_little(redis_url, worker_processes):
    worker_processes.start(step_s=0)

    async def use(queue: JobQueue) -> list[float]:
        took = []
        for seed in range(50):
            start = time.perf_counter()
            view = await queue.wait((await queue.submit(request_of(seed))).id, 10)
            took.append(time.perf_counter() - start)
            assert view.status == JobStatus.SUCCEEDED
        return took

    assert statistics.median(run(redis_url, use)) < 0.25, "5 ms on an idle machine; no poll waits for it"


def test_health_counts_living_workers_only(redis_url, worker_processes):
    first, _ = worker_processes.start(), worker_processes.start()

    async def use(queue: JobQueue) -> None:
        assert (await queue.check()).num_ready_workers == 2
        first.kill()
        deadline = time.monotonic() + 10
        while (await queue.check()).num_ready_workers != 1:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)

    run(redis_url, use)


def test_nothing_is_left_behind(redis_url, worker_processes):
    worker = worker_processes.start()
    compute(redis_url, *[request_of(seed) for seed in range(5)])
    worker.terminate()
    assert worker.wait(10) == 0
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        for key in client.scan_iter("*"):
            kept = key.startswith(("rq:job:", "rq:results:", "smalti:events:", "rq:worker:", "smalti:bell"))
            if kept and key != "smalti:bell":
                assert 0 < client.ttl(key) <= 60, key
        assert client.zcard("smalti:leases") == client.zcard("rq:wip:interactive") == 0


async def until(queue: JobQueue, job_ids: list[str], status: JobStatus) -> None:
    deadline = time.monotonic() + 10
    while {(await queue.get(job_id)).status for job_id in job_ids} != {status}:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
