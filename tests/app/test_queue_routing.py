"""Which worker gets which job, by pipeline and version."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from app.queue import JobQueue
from tests.app.queue_jobs import REQUEST, run
from workers.compute import Slots
from workers.errors import (
    PipelineNotServed,
)
from workers.queue.consumer import Consumer
from workers.queue.records import MESSAGES_VERSION, job_key


@pytest.fixture
def specialist(redis_url: str) -> Iterator[Consumer]:
    """A worker that has another pipeline than ``consumer``, and more slots than work."""
    specialist = Consumer(redis_url, ["other"], lease_s=1, max_tries=3, ageing_s=0.2)
    yield specialist
    specialist.close()


OTHER = REQUEST.model_copy(update={"pipeline": "other"})


def test_a_worker_leaves_jobs_of_other_pipelines_to_those_who_have_them(redis_url, consumer, specialist):
    async def submit(queue: JobQueue) -> list[str]:
        return [(await queue.submit(request)).id for request in (OTHER, REQUEST, OTHER, REQUEST)]

    ids = run(redis_url, submit)
    taken = consumer.claim(Slots(4, 4), is_idle=True).jobs
    assert [claim.job_id for claim in taken] == [ids[1], ids[3]]
    assert consumer.claim(Slots(4, 4), is_idle=False).jobs == ()
    others = specialist.claim(Slots(4, 4), is_idle=True).jobs
    assert [claim.job_id for claim in others] == [ids[0], ids[2]]
    assert [claim.num_tries for claim in others] == [1, 1]


def test_a_job_wakes_a_worker_that_has_its_pipeline(redis_url, consumer, specialist):
    with ThreadPoolExecutor() as pool:
        waits = {}
        for worker in (consumer, specialist):
            waits[worker] = pool.submit(worker.wait_for_work)
            time.sleep(0.05)
        start = time.monotonic()
        run(redis_url, lambda queue: queue.submit(OTHER))
        waits[specialist].result()
        assert time.monotonic() - start < 0.5
        assert not waits[consumer].done()


def test_an_idle_worker_of_another_pipeline_holds_no_busy_one_back(redis_url, consumer, specialist):
    assert consumer.claim(Slots(4, 4), is_idle=True).jobs == (), "and is noted as idle"
    run(redis_url, lambda queue: queue.submit(OTHER))
    assert specialist.claim(Slots(4, 4), is_idle=False).jobs == (), "left to the idle worker"
    assert consumer.claim(Slots(4, 4), is_idle=True).jobs == ()
    assert len(specialist.claim(Slots(4, 4), is_idle=False).jobs) == 1


def test_a_quarantined_job_makes_only_workers_of_its_pipeline_drain(redis_url, consumer, specialist):
    run(redis_url, lambda queue: queue.submit(OTHER))
    specialist.release(specialist.claim(Slots(1, 1), is_idle=True).jobs, "quarantine")
    assert not consumer.claim(Slots(4, 4), is_idle=False).must_drain
    assert specialist.claim(Slots(4, 4), is_idle=False).must_drain
    assert len(specialist.claim(Slots(4, 4), is_idle=True).jobs) == 1


def test_a_job_that_no_living_worker_can_do_is_refused_at_once(redis_url, consumer, specialist):
    async def use(queue: JobQueue) -> None:
        await queue.submit(OTHER)  # there is no worker at all yet: one may be about to start
        consumer.heartbeat([])
        with pytest.raises(PipelineNotServed, match="no worker has 'other' now"):
            await queue.submit(OTHER)
        await queue.submit(REQUEST)
        specialist.heartbeat([])
        await queue.submit(OTHER)
        specialist.close()
        with pytest.raises(PipelineNotServed):
            await queue.submit(OTHER)
        assert (await queue.checks.check()).queue_length == 3

    run(redis_url, use)


def test_readiness_names_the_pipelines_of_ready_workers(redis_url, consumer, specialist):
    async def use(queue: JobQueue) -> None:
        consumer.phase = "ready"
        for each in (consumer, specialist):
            each.heartbeat([])
        health = await queue.checks.check()
        assert (health.num_ready_workers, health.pipelines) == (1, {"tiny"})

    run(redis_url, use)


def test_a_worker_leaves_what_later_front_ends_ask_for(redis_url, consumer):
    async def submit(queue: JobQueue) -> list[str]:
        return [(await queue.submit(REQUEST)).id for _ in range(2)]

    later, now = run(redis_url, submit)
    with redis.Redis.from_url(redis_url) as client:
        client.hset(job_key(later), mapping={"version": MESSAGES_VERSION + 1, "data": "in words of later"})
        assert [claim.job_id for claim in consumer.claim(Slots(4, 4), is_idle=True).jobs] == [now]
        assert client.hget(job_key(later), "status") == b"queued"
