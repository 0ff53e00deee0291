"""The front end's side of the queue, with the transitions done by an RQ worker that nobody runs."""

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest
import redis
from rq.job import Callback, Job
from rq.queue import Queue
from rq.registry import FinishedJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer

from app.queue import JobQueue
from workers import redis_server
from workers.errors import InvalidRequest, JobNotFound, QueueFull, QueueUnavailable, StorageFull
from workers.messages import (
    DecodeRequest,
    EncodeRequest,
    GenerateRequest,
    GenerateResult,
    JobStatus,
    Progress,
)
from workers.rq_worker import Outcome, RQWorker

REQUEST = GenerateRequest(
    pipeline="toy", class_label=3, seed=7, num_steps=4, guidance_scale=1, sampler="euler"
)
RESULT = GenerateResult(pipeline="toy", seed=7, images=[])


@pytest.fixture
def link(redis_url: str) -> Iterator[RQWorker]:
    worker = RQWorker(redis_url, lease_s=1, max_tries=3, ageing_s=0.2)
    yield worker
    worker.close()


def run(redis_url: str, use: Any, **limits: int) -> Any:
    """Run ``use(queue)``, closing the queue after it."""

    async def main() -> Any:
        queue = JobQueue(redis_url, **{"max_length": 10, "result_ttl_s": 60, **limits})
        try:
            return await use(queue)
        finally:
            await queue.close()

    return asyncio.run(main())


def test_a_job_lives_from_queued_to_succeeded(redis_url, link):
    async def use(queue: JobQueue) -> None:
        view = await queue.submit(REQUEST)
        assert (view.status, view.queue_position, view.num_tries) == (JobStatus.QUEUED, 0, 0)
        assert await queue.get(view.id) == view
        [claim] = link.claim(4, is_idle=True).jobs
        assert (claim.job_id, claim.request) == (view.id, REQUEST)
        running = await queue.get(view.id)
        assert running.status == JobStatus.RUNNING
        assert running.num_tries == 1
        assert running.started_at is not None
        link.tell_progress([(claim, Progress(step=1, total=4))])
        running = await queue.get(view.id)
        assert running.progress == Progress(step=1, total=4)
        assert running.seconds_left is not None
        assert link.finish([Outcome(claim, RESULT)]) == [True]
        done = await queue.get(view.id)
        assert done.status == JobStatus.SUCCEEDED
        assert done.result == RESULT
        assert done.started_at <= done.ended_at

    run(redis_url, use)


def test_rq_sees_our_jobs_as_its_own(redis_url, link):
    async def use(queue: JobQueue) -> str:
        return (await queue.submit(REQUEST)).id

    job_id = run(redis_url, use)
    with redis.Redis.from_url(redis_url) as client:
        queue = Queue("interactive", connection=client, serializer=JSONSerializer)
        assert queue.job_ids == [job_id]
        job = Job.fetch(job_id, connection=client, serializer=JSONSerializer)
        assert job.func_name == "generate"
        assert job.kwargs == {"request": REQUEST.model_dump()}
        assert job.get_status() == "queued"
        [claim] = link.claim(4, is_idle=True).jobs
        assert StartedJobRegistry(queue=queue).get_job_ids() == [job_id]  # which lets RQ clean up
        assert job.get_status() == "started"
        link.finish([Outcome(claim, RESULT)])
        assert job.get_status() == "finished"
        assert job.return_value() == RESULT.model_dump()
        assert FinishedJobRegistry(queue=queue).get_job_ids() == [job_id]
        assert StartedJobRegistry(queue=queue).count == 0
        assert Job.fetch(job_id, connection=client, serializer=JSONSerializer).kwargs == {}, (
            "requests are dropped"
        )
        assert 0 < client.ttl(job.key) <= 60


@pytest.mark.parametrize(
    "request_",
    [EncodeRequest(image="QUJDRA=="), DecodeRequest(codes=[[[1, 2], [3, 4]]] * 3, tokenizer="0" * 16)],
)
def test_every_request_arrives_as_it_was(redis_url, link, request_):
    run(redis_url, lambda queue: queue.submit(request_))
    [claim] = link.claim(4, is_idle=True).jobs
    assert claim.request == request_
    assert claim.num_slots == (1 if isinstance(request_, EncodeRequest) else 3)


def test_a_full_queue_says_when_to_come_again(redis_url):
    async def use(queue: JobQueue) -> None:
        await queue.submit(REQUEST)
        await queue.submit(REQUEST.model_copy(update={"priority": "batch"}))
        with pytest.raises(QueueFull) as raised:
            await queue.submit(REQUEST)
        assert raised.value.retry_after_s >= 1

    run(redis_url, use, max_length=2)


def test_interactive_jobs_go_first_and_batch_jobs_age(redis_url, link):
    async def submit(queue: JobQueue) -> None:
        for priority in ("batch", "interactive"):
            for seed in range(4):
                await queue.submit(REQUEST.model_copy(update={"priority": priority, "seed": seed}))

    def order() -> list[str]:
        claims = link.claim(8, is_idle=True)
        link.finish([Outcome(claim, RESULT) for claim in claims.jobs])
        return [claim.request.priority[0] for claim in claims.jobs]

    run(redis_url, submit)
    assert "".join(order()) == "iiiibbbb"

    async def submit_and_age(queue: JobQueue) -> None:
        await submit(queue)
        assert (await queue.submit(REQUEST.model_copy(update={"priority": "batch"}))).queue_position == 8
        await asyncio.sleep(0.25)

    run(redis_url, submit_and_age)
    assert "".join(order()) == "iiibibbb"


def test_claims_fill_the_slots(redis_url, link):
    async def submit(queue: JobQueue) -> None:
        for num_images in (2, 1, 4, 1):
            await queue.submit(REQUEST.model_copy(update={"num_images": num_images}))

    run(redis_url, submit)
    assert [claim.num_slots for claim in link.claim(4, is_idle=True).jobs] == [2, 1, 4]


def test_idle_workers_share_what_waits_and_a_busy_one_leaves_it_to_them(redis_url):
    links = [RQWorker(redis_url, lease_s=1, max_tries=3, ageing_s=9) for _ in range(3)]

    async def submit(queue: JobQueue) -> None:
        for seed in range(9):
            await queue.submit(REQUEST.model_copy(update={"seed": seed}))

    for link in links:
        assert link.claim(8, is_idle=True).jobs == ()
    run(redis_url, submit)
    assert len(links[0].claim(8, is_idle=True).jobs) == 3
    assert len(links[0].claim(8, is_idle=False).jobs) == 0
    assert len(links[1].claim(8, is_idle=True).jobs) == 3
    assert len(links[0].claim(8, is_idle=False).jobs) == 0
    assert len(links[0].claim(8, is_idle=False).jobs) == 3, "each is asked once: the third may be dead"
    for link in links:
        link.close()


def test_jobs_to_be_tried_alone_take_turns_with_the_others(redis_url, link):
    async def submit(queue: JobQueue) -> None:
        for seed in range(4):
            await queue.submit(REQUEST.model_copy(update={"seed": seed}))

    run(redis_url, submit)
    link.hand_back(link.claim(4, is_idle=True).jobs, "alone")
    run(redis_url, submit)
    got = []
    for _ in range(6):
        claims = link.claim(2, is_idle=True)
        got.append((len(claims.jobs), claims.must_drain))
        link.finish([Outcome(claim, RESULT) for claim in claims.jobs])
    alone, together = (1, True), (2, False)
    assert got == [alone, together, alone, together, alone, alone]


def test_unknown_jobs_are_not_found(redis_url):
    async def use(queue: JobQueue) -> None:
        for call in (queue.get("no"), queue.cancel("no"), queue.wait("no", 1), anext(queue.events("no"))):
            with pytest.raises(JobNotFound):
                await call

    run(redis_url, use)


def test_waiting_ends_with_the_job_and_with_the_time(redis_url, link):
    async def use(queue: JobQueue) -> None:
        clock = asyncio.get_running_loop().time
        view = await queue.submit(REQUEST)
        waits = [asyncio.create_task(queue.wait(view.id, 10)) for _ in range(100)]
        start = clock()
        assert (await queue.wait(view.id, 0.1)).status == JobStatus.QUEUED
        assert 0.09 < clock() - start < 1
        [claim] = link.claim(4, is_idle=True).jobs
        link.finish([Outcome(claim, RESULT)])
        start = clock()
        assert {view.status for view in await asyncio.gather(*waits)} == {JobStatus.SUCCEEDED}
        assert clock() - start < 1
        assert (await queue.wait(view.id, 10)).status == JobStatus.SUCCEEDED
        with redis.Redis.from_url(redis_url) as client:
            assert client.pubsub_numsub("smalti:news")[0][1] == 1, "one reader for all"

    run(redis_url, use)


def test_a_cancelled_job_is_nobodys(redis_url, link):
    async def use(queue: JobQueue) -> None:
        queued, running, done = [(await queue.submit(REQUEST)).id for _ in range(3)]
        assert (await queue.cancel(queued)).status == JobStatus.CANCELLED
        [claim, other] = link.claim(2, is_idle=True).jobs
        link.finish([Outcome(other, RESULT)])
        assert (await queue.cancel(running)).status == JobStatus.CANCELLED
        assert link.wait_for_dismissal(1) == (running, claim.execution)
        assert link.beat([claim]) == [claim]
        assert link.finish([Outcome(claim, RESULT)]) == [False]
        view = await queue.cancel(running)
        assert (view.status, view.result) == (JobStatus.CANCELLED, None)
        assert (await queue.cancel(done)).status == JobStatus.SUCCEEDED, "an end is final"
        assert (await queue.check()).queue_length == 0

    run(redis_url, use)


def test_a_queued_job_ends_at_its_deadline_without_any_worker(redis_url, link):
    async def use(queue: JobQueue) -> None:
        hurried = REQUEST.model_copy(update={"deadline_s": 0.05})
        view, left = await queue.submit(hurried), await queue.submit(hurried)
        await asyncio.sleep(0.1)
        view = await queue.get(view.id)
        assert view.status == JobStatus.FAILED
        assert view.error.code == "deadline_exceeded"
        link.reap()
        assert link.claim(4, is_idle=True).jobs == ()
        assert (await queue.get(left.id)).error.code == "deadline_exceeded"
        assert (await queue.check()).queue_length == 0

    run(redis_url, use)


def test_who_lost_a_job_has_no_say(redis_url, link):
    async def use(queue: JobQueue) -> None:
        view = await queue.submit(REQUEST)
        [first] = link.claim(4, is_idle=True).jobs
        link.hand_back([first], "back")
        assert (await queue.get(view.id)).num_tries == 0
        [second] = link.claim(4, is_idle=True).jobs
        assert link.finish([Outcome(first, StorageFull("late"))]) == [False]
        assert link.finish([Outcome(second, RESULT)]) == [True]
        assert link.finish([Outcome(second, RESULT)]) == [True], "told twice after a lost answer"
        assert link.finish([Outcome(second, StorageFull("late"))]) == [False]
        assert (await queue.get(view.id)).status == JobStatus.SUCCEEDED

    run(redis_url, use)


def test_foreign_jobs_are_refused_and_never_called(redis_url, link):
    with redis.Redis.from_url(redis_url) as client:
        queue = Queue("interactive", connection=client, serializer=JSONSerializer)
        good = {"request": REQUEST.model_dump()}
        jobs = [
            queue.enqueue("os.getcwd"),
            queue.enqueue("generate", request={"seed": "no"}),
            queue.enqueue("generate", kwargs=good, on_success=Callback("os.getcwd")),
            Queue("interactive", connection=client).enqueue("os.getcwd"),  # pickled
        ]
        assert link.claim(4, is_idle=True).jobs == ()
        assert [client.hget(job.key, "error_code") for job in jobs] == [InvalidRequest.code.encode()] * 4
        assert client.zcard("smalti:leases") == 0


def test_events_replay_and_follow(redis_url, link):
    async def use(queue: JobQueue) -> None:
        view = await queue.submit(REQUEST)
        events = queue.events(view.id)
        first = await anext(events)
        assert first.status == JobStatus.QUEUED
        rest: Coroutine[Any, Any, list[Any]] = _collect(events)
        following = asyncio.create_task(rest)
        await asyncio.sleep(0.05)
        [claim] = link.claim(4, is_idle=True).jobs
        link.tell_progress([(claim, Progress(step=2, total=4))])
        link.finish([Outcome(claim, RESULT)])
        seen = await following
        assert [event.status for event in seen] == ["running", "running", "succeeded"]
        assert seen[1].progress == Progress(step=2, total=4)
        assert await _collect(queue.events(view.id, first.id)) == seen
        assert await _collect(queue.events(view.id, seen[-1].id)) == []

    run(redis_url, use)


async def _collect(events: Any) -> list[Any]:
    return [event async for event in events]


def test_a_dead_server_is_told_at_once_and_a_new_one_found(own_redis):
    async def use(queue: JobQueue) -> None:
        view = await queue.submit(REQUEST)
        waiting = asyncio.create_task(queue.wait(view.id, 10))
        await asyncio.sleep(0.1)
        with redis.Redis.from_url(own_redis.url) as client:
            client.shutdown()
        start = asyncio.get_running_loop().time()
        for call in (queue.check(), queue.get(view.id), queue.submit(REQUEST)):
            with pytest.raises(QueueUnavailable):
                await call
        assert asyncio.get_running_loop().time() - start < 3
        again = await asyncio.to_thread(redis_server.start, own_redis.data_dir)
        assert (await queue.get(view.id)).status == JobStatus.QUEUED
        await queue.cancel(view.id)
        assert (await waiting).status == JobStatus.CANCELLED
        await asyncio.to_thread(again.stop)

    run(own_redis.url, use)
