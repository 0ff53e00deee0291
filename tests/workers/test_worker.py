"""Workers on a real queue, many as real processes, with an engine that draws greys."""

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
from models.media.image import encode_image
from tests.fake_engine import (
    BAD_SIGNAL,
    FAILS_SAMPLE_1,
    FAILS_SAMPLES,
    FINGERPRINT,
    GRID,
    KILLS,
    NOT_FINITE,
    RAISES,
    FakeEngine,
    codes_of,
    grey_of,
    pixels_of,
)
from tests.workers.conftest import WorkerProcesses
from tests.workers.toy_worker import PIPELINE, new_worker
from workers.blobs import BlobStore
from workers.errors import PipelineNotServed, StorageFull
from workers.messages import BlobReference, JobError, JobStatus, JobView, Output, Resolved
from workers.queue import embedded_server
from workers.results import ResultStore
from workers.worker import NUM_SHARES, WorkerConfig


def request_of(seed: int = 0, num_steps: int = 1, **fields: Any) -> Resolved:
    fields = {"num_samples": 1, "format": "png", "pipeline": PIPELINE, **fields}
    return Resolved(operation="generate", seed=seed, options={"num_steps": num_steps}, **fields)


def encode_of(*sources: BlobReference) -> Resolved:
    return Resolved(
        operation="encode", pipeline=PIPELINE, num_samples=len(sources), sources=sources, return_codes=True
    )


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


def assert_right(view: JobView, request: Resolved, data_dir: Path) -> None:
    """The job succeeded with the greys of its seed."""
    assert view.status == JobStatus.SUCCEEDED, view.error
    assert view.result.seed == request.seed
    assert len(view.result.outputs) == request.num_samples
    for index, output in enumerate(view.result.outputs):
        path = data_dir / "results" / view.id[:2] / view.id / f"{index}.{request.format}"
        assert hashlib.sha256(path.read_bytes()).hexdigest() == output.sha256
        pixels = np.asarray(Image.open(path).convert("L"))
        assert np.array_equal(pixels, pixels_of(grey_of(request.seed, index))[:, :, 0])


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def in_process(redis_url: str, data_dir: Path) -> Iterator[Callable[..., Any]]:
    """Run a worker of this process in a thread, around ``use(queue)``."""

    def work(use: Callable[[JobQueue], Awaitable[Any]], engine: FakeEngine, **config: Any) -> Any:
        worker = new_worker(redis_url, engine, data_dir, WorkerConfig(**{"lease_s": 1, **config}))
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
        request_of(seed, num_samples=1 + seed % 3, format="webp" if seed % 2 else "png") for seed in range(20)
    ]
    requests[3] = request_of(3, return_codes=True)
    views = compute(redis_url, *requests)
    for view, request in zip(views, requests, strict=True):
        assert_right(view, request, worker_processes.data_dir)
        assert view.num_tries == 1
    codes = views[3].result.codes
    assert (codes.codes, codes.grid, codes.tokenizer) == (None, GRID, FINGERPRINT), "not in Redis"
    assert ResultStore(worker_processes.data_dir / "results").read_codes(views[3].id) == [codes_of(3)]
    assert views[4].result.codes is None


def test_encode_and_decode_give_their_own_results(in_process, data_dir):
    greys = (9, 200)
    blobs = BlobStore(data_dir / "blobs")
    sources = [blobs.put(encode_image(pixels_of(grey), "png"), "image/png") for grey in greys]

    async def use(queue: JobQueue) -> None:
        encode = await queue.wait((await queue.submit(encode_of(*sources))).id, 10)
        assert encode.status == JobStatus.SUCCEEDED, encode.error
        assert encode.result.outputs == [Output(sample=0, medium="image"), Output(sample=1, medium="image")]
        assert encode.result.seed is None
        results = ResultStore(data_dir / "results")
        codes = results.read_codes(encode.id)
        assert codes == [codes_of(grey) for grey in greys]

        request = Resolved(operation="decode", pipeline=PIPELINE, num_samples=2, codes=codes, format="png")
        decode = await queue.wait((await queue.submit(request)).id, 10)
        assert decode.result.operation == "decode"
        for index, (grey, output) in enumerate(zip(greys, decode.result.images, strict=True)):
            expected = encode_image(pixels_of(grey), "png")
            assert results.read(decode.id, index).data == expected
            assert output.url == f"/jobs/{decode.id}/outputs/{index}"
            assert (output.width_px, output.height_px, output.num_bytes) == (8, 8, len(expected))
        totals = (await queue.checks.metrics()).totals
        while not {"images|decode", "codes|encode", "codes|decode"} <= totals.keys():
            await asyncio.sleep(0.05)
            totals = (await queue.checks.metrics()).totals
        assert (totals["images|decode"], totals["codes|encode"], totals["codes|decode"]) == (2, 8, 8)

    in_process(use, FakeEngine(), tells_provenance=False)


def test_a_source_that_cannot_be_read_costs_only_its_job(in_process, data_dir):
    blobs = BlobStore(data_dir / "blobs")
    good = blobs.put(encode_image(pixels_of(9), "png"), "image/png")
    broken = blobs.put(b"not a picture", "image/png")
    missing = BlobReference(sha256="0" * 64, media_type="image/png")

    async def use(queue: JobQueue) -> None:
        running = await queue.submit(request_of(1, num_steps=40))
        await until(queue, [running.id], JobStatus.RUNNING)
        views = [await queue.submit(encode_of(*each)) for each in ([good], [good, broken], [missing], [good])]
        views = [await queue.wait(view.id, 10) for view in views]
        assert [view.error.code if view.error else None for view in views] == [
            None, "internal_error", "internal_error", None,
        ]  # fmt: skip
        assert views[2].error.message.endswith("send the request again")
        assert_right(await queue.wait(running.id, 10), request_of(1), data_dir)

    in_process(use, FakeEngine(step_s=0.01))


def test_sources_are_read_while_other_jobs_are_computed(in_process, data_dir, monkeypatch):
    source = BlobStore(data_dir / "blobs").put(encode_image(pixels_of(9), "png"), "image/png")
    threads = []

    def read_slowly(self: BlobStore, reference: BlobReference, read: Any = BlobStore.read) -> bytes:
        threads.append(threading.current_thread().name)
        time.sleep(0.5)
        return read(self, reference)

    monkeypatch.setattr(BlobStore, "read", read_slowly)

    async def use(queue: JobQueue) -> None:
        encode = await queue.submit(encode_of(source))
        await until(queue, [encode.id], JobStatus.RUNNING)
        assert (await queue.get(encode.id)).status == JobStatus.RUNNING
        assert engine.works == {}, "not there yet"
        assert (await queue.wait(encode.id, 10)).status == JobStatus.SUCCEEDED

    engine = FakeEngine()
    in_process(use, engine)
    assert threads == ["intake"]


def test_a_job_for_a_pipeline_that_is_not_served_costs_nobody_anything(in_process, data_dir):
    async def use(queue: JobQueue) -> None:
        running = await queue.submit(request_of(1, num_steps=40))
        await until(queue, [running.id], JobStatus.RUNNING)
        with pytest.raises(PipelineNotServed):
            await queue.submit(request_of(2, pipeline="other"))
        view = await queue.wait(running.id, 10)
        assert_right(view, request_of(1), data_dir)
        assert view.num_tries == 1

    in_process(use, FakeEngine(step_s=0.01))


def test_a_sample_fails_alone_and_all_of_them_fail_the_job(in_process, data_dir):
    async def use(queue: JobQueue) -> None:
        request = request_of(FAILS_SAMPLE_1, num_samples=3, return_codes=True)
        view = await queue.wait((await queue.submit(request)).id, 10)
        assert view.status == JobStatus.SUCCEEDED
        outputs = view.result.outputs
        error = JobError(code="not_finite", message=NOT_FINITE)
        assert outputs[1] == Output(sample=1, medium="image", error=error)
        assert [output.sample for output in view.result.images] == [0, 2]
        assert outputs[2].url == f"/jobs/{view.id}/outputs/2"
        codes = ResultStore(data_dir / "results").read_codes(view.id)
        assert [each is None for each in codes] == [False, True, False]

        view = await queue.wait((await queue.submit(request_of(FAILS_SAMPLES, num_samples=2))).id, 10)
        assert view.error == error

    in_process(use, FakeEngine())


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
        assert_right(view, request, worker_processes.data_dir)
        assert view.num_tries == 2
    assert took_s < 8


def test_a_job_that_kills_its_workers_fails_alone_after_its_tries(redis_url, worker_processes):
    requests = [request_of(seed, num_steps=20) for seed in range(6)]
    requests[2] = request_of(KILLS, num_steps=20)

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
        assert_right(views[index], requests[index], worker_processes.data_dir)
        assert views[index].num_tries <= 2, "a neighbour is taken down once"


def test_an_exception_costs_only_its_job(in_process, data_dir):
    engine = FakeEngine(step_s=0.001)
    requests = [request_of(seed, num_steps=30) for seed in range(6)]
    requests[2] = request_of(RAISES)
    requests[4] = request_of(BAD_SIGNAL)

    async def use(queue: JobQueue) -> list[JobView]:
        ids = [(await queue.submit(request)).id for request in requests]
        return [await queue.wait(job_id, 20) for job_id in ids]

    views = in_process(use, engine)
    for index, (view, request) in enumerate(zip(views, requests, strict=True)):
        if index in (2, 4):
            assert view.error.code == "internal_error"
            assert "/" not in view.error.message
        else:
            assert_right(view, request, data_dir)


def test_a_cancelled_job_leaves_its_neighbours_alone(in_process, data_dir):
    async def use(queue: JobQueue) -> str:
        long, neighbour = request_of(1, num_steps=200), request_of(2, num_steps=20)
        ids = [(await queue.submit(request)).id for request in (long, neighbour)]
        await until(queue, ids, JobStatus.RUNNING)
        assert (await queue.cancel(ids[0])).status == JobStatus.CANCELLED
        view = await queue.wait(ids[1], 20)
        assert_right(view, neighbour, data_dir)
        assert (await queue.get(ids[0])).status == JobStatus.CANCELLED
        return ids[0]

    engine = FakeEngine(step_s=0.05)
    cancelled = in_process(use, engine, lease_s=60)
    assert engine.dropped[cancelled] < 100, (
        "told before the next heartbeat, which comes after 20 s, or 400 steps"
    )


def test_a_running_job_ends_at_its_deadline(in_process):
    async def use(queue: JobQueue) -> str:
        view = await queue.submit(request_of(1, num_steps=200, deadline_s=0.2))
        view = await queue.wait(view.id, 20)
        assert view.error.code == "deadline_exceeded"
        assert (await queue.wait((await queue.submit(request_of(2))).id, 10)).status == JobStatus.SUCCEEDED
        return view.id

    engine = FakeEngine(step_s=0.01)
    overdue = in_process(use, engine)
    assert engine.dropped[overdue] < 25, "20 steps fit at most"


def test_a_worker_full_of_batch_jobs_takes_an_interactive_one_at_once(in_process):
    async def use(queue: JobQueue) -> None:
        batch = [await queue.submit(request_of(seed, 100, priority="batch")) for seed in range(4)]
        while (await queue.get(batch[1].id)).status != JobStatus.RUNNING:
            await asyncio.sleep(0.01)
        now = await queue.wait((await queue.submit(request_of(9, 5))).id, 10)
        assert now.status == JobStatus.SUCCEEDED
        assert [(await queue.get(each.id)).status for each in batch] == [JobStatus.RUNNING] * 2 + [
            JobStatus.QUEUED
        ] * 2
        for each in batch[:2]:
            await queue.cancel(each.id)
        assert (await queue.wait(batch[3].id, 10)).status == JobStatus.SUCCEEDED

    in_process(use, FakeEngine(num_slots=2, step_s=0.02))


def test_a_worker_full_of_interactive_jobs_hardly_asks_for_batch_jobs(in_process, redis_url):
    engine = FakeEngine(num_slots=2, step_s=0.01)

    async def use(queue: JobQueue) -> None:
        job = await queue.submit(request_of(num_samples=2, num_steps=10_000))
        while not engine.works:
            await asyncio.sleep(0.01)
        with redis.Redis.from_url(redis_url) as client:
            client.config_resetstat()
            await asyncio.sleep(1)
            assert client.info("commandstats")["cmdstat_evalsha"]["calls"] < 20
        await queue.cancel(job.id)

    in_process(use, engine)


def test_progress_is_told(in_process):
    async def use(queue: JobQueue) -> None:
        view = await queue.submit(request_of(1, num_steps=100))
        steps = [event.progress.step async for event in queue.events(view.id) if event.progress]
        assert len(steps) >= 3
        assert steps == sorted(steps)
        assert steps[-1] <= 100
        progress = (await queue.get(view.id)).progress
        assert (progress.step, progress.total) == (100, 100), "a finished job is whole"

    in_process(use, FakeEngine(step_s=0.01))


def test_a_full_disk_is_a_clear_failure(in_process, monkeypatch):
    def refuse(*_: Any) -> Any:
        raise StorageFull("the disk for results is full; try again later")

    monkeypatch.setattr(ResultStore, "put", refuse)

    async def use(queue: JobQueue) -> None:
        view = await queue.wait((await queue.submit(request_of(1))).id, 10)
        assert view.error.code == "storage_full"

    in_process(use, FakeEngine())


def test_the_seed_promise_is_checked_while_idle_and_its_verdict_is_told(in_process):
    engine = FakeEngine(step_s=0.001, num_checks=100)  # a check takes 10 ms

    async def use(queue: JobQueue) -> None:
        took_s = []
        for seed in range(5):
            start = time.perf_counter()
            view = await queue.wait((await queue.submit(request_of(seed))).id, 10)
            took_s.append(time.perf_counter() - start)
            assert view.status == JobStatus.SUCCEEDED
        assert engine.needs_check, "not done before the first job"
        assert statistics.median(took_s) < 0.25, "a job that comes waits for one slice"
        how: list[str] = []
        while how != ["checked"]:
            verdicts = (await queue.checks.pipeline_states()).verdicts
            how = [each.how for each in verdicts.get("tiny", [])]
            await asyncio.sleep(0.05)

    in_process(use, engine)


def test_the_check_gets_its_share_of_the_time_while_jobs_run(in_process):
    engine = FakeEngine(step_s=0.002, num_checks=10**6)

    async def use(queue: JobQueue) -> None:
        ids = [(await queue.submit(request_of(seed, num_steps=10**6))).id for seed in range(2)]
        await until(queue, ids, JobStatus.RUNNING)
        num_before, start = len(engine.check_budgets_s), time.monotonic()
        await asyncio.sleep(1)
        num_checks = len(engine.check_budgets_s) - num_before
        share = (
            0.01 * num_checks / (time.monotonic() - start)
        )  # at least: a machine that is busy sleeps longer
        assert 0 < share <= 1.2 / NUM_SHARES
        assert set(engine.check_budgets_s[num_before + 1 :]) == {0.05}

    in_process(use, engine, grace_s=0)


def test_a_check_that_raises_costs_no_job(in_process, monkeypatch, data_dir):
    def fail(self: FakeEngine, budget_s: float) -> None:
        raise RuntimeError("the check is broken")

    monkeypatch.setattr(FakeEngine, "check_seeds", fail)

    async def use(queue: JobQueue) -> None:
        view = await queue.wait((await queue.submit(request_of(1, num_steps=5))).id, 10)
        assert_right(view, request_of(1), data_dir)
        assert view.num_tries == 1

    in_process(use, FakeEngine(step_s=0.001, num_checks=9))


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
            assert_right(view, request, worker_processes.data_dir)

    run(redis_url, use)
    assert paused.poll() is None


def test_sigterm_drains_and_hands_back_what_takes_too_long(redis_url, worker_processes):
    worker = worker_processes.start(step_s=0.01, grace_s=1)

    async def use(queue: JobQueue) -> None:
        short = await queue.submit(request_of(1, num_steps=60))
        long = await queue.submit(request_of(2, num_steps=200))
        await until(queue, [short.id, long.id], JobStatus.RUNNING)
        worker.send_signal(signal.SIGTERM)
        while (await queue.checks.check()).num_draining_workers != 1:
            await asyncio.sleep(0.01)
        late = await queue.submit(request_of(3))
        assert (await queue.checks.check()).num_ready_workers == 0
        assert await asyncio.to_thread(worker.wait, 10) == 0
        assert (await queue.get(short.id)).status == JobStatus.SUCCEEDED
        for view in (await queue.get(long.id), await queue.get(late.id)):
            assert (view.status, view.num_tries) == (JobStatus.QUEUED, 0)
        assert (await queue.get(long.id)).queue_position == 0, "handed back to the front"
        assert (await queue.checks.check()).num_draining_workers == 0
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
        again = await asyncio.to_thread(embedded_server.start, own_redis.data_dir)
        for job_id, request in zip(ids, requests, strict=True):
            view = await queue.wait(job_id, 10)
            assert_right(view, request, processes.data_dir)
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
        assert (await queue.checks.check()).num_ready_workers == 2
        first.kill()
        deadline = time.monotonic() + 10
        while (await queue.checks.check()).num_ready_workers != 1:
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
            kept = key.startswith(
                ("rq:job:", "rq:results:", "smalti:events:", "rq:worker:", "smalti:wake_up")
            )
            if kept and key != "smalti:wake_up":
                assert 0 < client.ttl(key) <= 60, key
        assert client.zcard("smalti:leases") == client.zcard("rq:wip:interactive") == 0


async def until(queue: JobQueue, job_ids: list[str], status: JobStatus) -> None:
    deadline = time.monotonic() + 10
    while {(await queue.get(job_id)).status for job_id in job_ids} != {status}:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
