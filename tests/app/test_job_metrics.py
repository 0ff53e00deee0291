"""What a job that has ended tells of itself: how long it took, in which company, and when it is forgotten."""

import time
from datetime import timedelta

import pytest
import redis

from app.queue import JobQueue
from tests.app.conftest import WAIT, job_of, read_job
from tests.app.queue_jobs import REQUEST, RESULT, run
from tests.fake_engine import FAILURES
from workers.compute import Slots
from workers.errors import NotFinite
from workers.messages import JobMetrics, Progress
from workers.queue.consumer import Outcome
from workers.queue.records import job_key


def test_waiting_and_computing_are_told_apart(redis_url, consumer):
    async def use(queue: JobQueue) -> JobMetrics:
        job = await queue.submit(REQUEST)
        time.sleep(0.1)
        [claim] = consumer.claim(Slots(1, 1), is_idle=True).jobs
        running = await queue.get(job.id)
        assert (running.metrics, running.expires_at) == (None, None)
        time.sleep(0.2)
        consumer.finish([Outcome(claim, RESULT, Progress(step=4, total=4), 2.5)])
        return (await queue.get(job.id)).metrics

    metrics = run(redis_url, use)
    assert 0.1 <= metrics.queue_s < metrics.compute_s < metrics.total_s
    assert metrics.compute_s >= 0.2
    assert metrics.total_s == pytest.approx(metrics.queue_s + metrics.compute_s)
    assert (metrics.num_steps, metrics.batch_size) == (4, 2.5)


def test_a_failed_job_tells_what_it_took_until_then(redis_url, consumer):
    async def use(queue: JobQueue) -> JobMetrics:
        job = await queue.submit(REQUEST)
        [claim] = consumer.claim(Slots(1, 1), is_idle=True).jobs
        consumer.finish([Outcome(claim, NotFinite("NaN"), Progress(step=1, total=4), 1.0)])
        return (await queue.get(job.id)).metrics

    metrics = run(redis_url, use)
    assert (metrics.num_steps, metrics.batch_size) == (1, 1.0)


def test_a_job_that_no_worker_took_has_waited_all_its_time(redis_url, consumer):
    async def use(queue: JobQueue) -> tuple[JobMetrics, JobMetrics]:
        never, again = [(await queue.submit(REQUEST)).id for _ in range(2)]
        claims = {claim.job_id: claim for claim in consumer.claim(Slots(2, 2), is_idle=True).jobs}
        time.sleep(0.05)
        consumer.release(claims.values(), "front")  # which was no try
        time.sleep(0.05)
        [claim] = consumer.claim(Slots(1, 1), is_idle=True).jobs
        assert claim.job_id == again
        consumer.finish([Outcome(claim, RESULT)])
        await queue.cancel(never)
        return (await queue.get(never)).metrics, (await queue.get(again)).metrics

    cancelled, taken_twice = run(redis_url, use)
    assert (cancelled.queue_s, cancelled.compute_s) == (cancelled.total_s, 0)
    assert (cancelled.num_steps, cancelled.batch_size) == (0, None)
    assert taken_twice.queue_s >= 0.1, "the last worker counts"


def test_a_job_that_an_older_worker_has_ended_has_no_metrics(redis_url, consumer):
    async def use(queue: JobQueue) -> None:
        job = await queue.submit(REQUEST)
        consumer.finish([Outcome(claim, RESULT) for claim in consumer.claim(Slots(1, 1), is_idle=True).jobs])
        with redis.Redis.from_url(redis_url) as client:
            client.hdel(job_key(job.id), "queue_s", "total_s", "batch_size")
        seen = await queue.get(job.id)
        assert (seen.status, seen.metrics) == ("succeeded", None)

    run(redis_url, use)


def test_a_job_says_when_it_expires(redis_url, consumer):
    async def use(queue: JobQueue) -> None:
        job = await queue.submit(REQUEST)
        assert job.expires_at is None
        consumer.finish([Outcome(claim, RESULT) for claim in consumer.claim(Slots(1, 1), is_idle=True).jobs])
        done = await queue.get(job.id)
        assert done.expires_at == done.ended_at + timedelta(seconds=60)
        with redis.Redis.from_url(redis_url) as client:
            assert client.ttl(job_key(job.id)) == 60

    run(redis_url, use)


def test_every_way_to_a_job_shows_its_metrics(service):
    waited = job_of(service.client.post("/generate", json={"seed": 1, "num_outputs": 3}, headers=WAIT))
    assert waited.metrics.batch_size == 3
    assert waited.metrics.num_steps == waited.progress.total == 5
    assert job_of(service.client.get(f"/jobs/{waited.id}")).metrics == waited.metrics
    listed = service.client.get("/jobs?limit=1").json()["jobs"]
    assert [read_job(each).metrics for each in listed] == [waited.metrics]
    events = service.client.get(f"/jobs/{waited.id}/events").text
    assert f'"total_s":{waited.metrics.total_s}' in events
    assert '"expires_at":' in events

    failed = service.client.post("/generate", json={"seed": next(iter(FAILURES))}, headers=WAIT).json()
    assert job_of(service.client.get(failed["instance"])).metrics.num_steps == 5
