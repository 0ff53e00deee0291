"""The front end's side of the queue, with a consumer whose methods the tests call."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from rq.job import Callback, Job
from rq.queue import Queue
from rq.registry import FinishedJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer

from app.queue import JobQueue, new_job_id
from app.queue_checks import PipelineStates
from tests.app.queue_jobs import BLOBS, DECODE, ENCODE, REQUEST, RESULT, run
from tests.waiting import wait_until
from workers.compute import Slots
from workers.errors import (
    InvalidRequest,
    JobNotFound,
    QueueFull,
    StorageFull,
)
from workers.messages import (
    CodesInfo,
    JobStatus,
    Output,
    Progress,
    Result,
    SeedVerdict,
)
from workers.queue.consumer import Claim, Consumer, Outcome
from workers.queue.records import JOB_EVENTS, WORK_RATE, blob_key, result_key


def test_a_job_lives_from_queued_to_succeeded(redis_url, consumer):
    async def use(queue: JobQueue) -> None:
        view = await queue.submit(REQUEST)
        assert (view.status, view.queue_position, view.num_tries) == (JobStatus.QUEUED, 0, 0)
        assert await queue.get(view.id) == view
        [claim] = consumer.claim(Slots(4, 4), is_idle=True).jobs
        assert (claim.job_id, claim.request) == (view.id, REQUEST)
        running = await queue.get(view.id)
        assert running.status == JobStatus.RUNNING
        assert running.num_tries == 1
        assert running.started_at is not None
        consumer.publish_progress([(claim, Progress(step=1, total=4))])
        running = await queue.get(view.id)
        assert running.progress == Progress(step=1, total=4)
        assert running.seconds_left is not None
        assert consumer.finish([Outcome(claim, RESULT)]) == [True]
        done = await queue.get(view.id)
        assert done.status == JobStatus.SUCCEEDED
        assert done.result == RESULT
        assert done.started_at <= done.ended_at

    run(redis_url, use)


def test_rq_sees_our_jobs_as_its_own(redis_url, consumer):
    async def use(queue: JobQueue) -> str:
        return (await queue.submit(REQUEST)).id

    job_id = run(redis_url, use)
    with redis.Redis.from_url(redis_url) as client:
        queue = Queue("interactive", connection=client, serializer=JSONSerializer)
        assert queue.job_ids == [job_id]
        job = Job.fetch(job_id, connection=client, serializer=JSONSerializer)
        assert job.func_name == "generate"
        assert job.kwargs == {"request": REQUEST.model_dump(mode="json")}
        assert job.get_status() == "queued"
        [claim] = consumer.claim(Slots(4, 4), is_idle=True).jobs
        assert StartedJobRegistry(queue=queue).get_job_ids() == [job_id]  # which lets RQ clean up
        assert job.get_status() == "started"
        consumer.finish([Outcome(claim, RESULT)])
        assert job.get_status() == "finished"
        assert Result.model_validate_json(client.get(result_key(job_id))) == RESULT
        assert FinishedJobRegistry(queue=queue).get_job_ids() == [job_id]
        assert StartedJobRegistry(queue=queue).count == 0
        assert Job.fetch(job_id, connection=client, serializer=JSONSerializer).kwargs == {}, (
            "requests are dropped"
        )
        assert 0 < client.ttl(job.key) <= 60


@pytest.mark.parametrize("request_", [REQUEST, ENCODE, DECODE], ids=lambda request: request.operation)
def test_every_request_arrives_as_it_was(redis_url, consumer, request_):
    run(redis_url, lambda queue: queue.submit(request_))
    [claim] = consumer.claim(Slots(4, 4), is_idle=True).jobs
    assert claim.request == request_
    assert claim.num_slots == request_.num_samples


def test_rq_info_shows_queues_jobs_and_workers(redis_url, consumer):
    async def submit(queue: JobQueue) -> None:
        for priority in ("interactive", "interactive", "batch"):
            await queue.submit(REQUEST.model_copy(update={"priority": priority}))

    run(redis_url, submit)
    [claim] = consumer.claim(Slots(1, 1), is_idle=True).jobs
    consumer.heartbeat([claim])
    lines = rq_info(redis_url)
    assert "queue interactive 1, 1 executing, 0 finished, 0 failed" in lines
    assert "queue batch 1, 0 executing, 0 finished, 0 failed" in lines
    [worker] = [line for line in lines if line.startswith(f"worker {consumer.name}")]
    assert " busy interactive, batch. jobs: 0 finished, 0 failed" in worker

    consumer.finish([Outcome(claim, RESULT)])
    consumer.heartbeat([])
    lines = rq_info(redis_url)
    assert "queue interactive 1, 0 executing, 1 finished, 0 failed" in lines
    [worker] = [line for line in lines if line.startswith("worker ")]
    assert " idle interactive, batch. jobs: 1 finished, 0 failed" in worker

    consumer.close()
    assert not [line for line in rq_info(redis_url) if line.startswith("worker ")]


def rq_info(redis_url: str) -> list[str]:
    """Return the lines that RQ's own command prints."""
    command = [Path(sys.executable).with_name("rq"), "info", "--raw", "--url", redis_url]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_a_dead_workers_registration_is_removed(redis_url, consumer):
    victim = Consumer(redis_url, ["tiny"], lease_s=0.1, max_tries=3, ageing_s=1)
    victim.heartbeat([])  # its hash lives for a second
    consumer.heartbeat([])
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        keys = ("rq:workers", "rq:workers:interactive", "rq:workers:batch")
        assert all(client.scard(key) == 2 for key in keys)
        wait_until(lambda: not client.exists(f"rq:worker:{victim.name}"))
        consumer.heartbeat([])
        consumer.reap()
        assert all(client.smembers(key) == {f"rq:worker:{consumer.name}"} for key in keys)


def test_blobs_are_referred_to_until_the_last_job_has_ended(redis_url, consumer):
    shared, own = (blob.sha256 for blob in BLOBS)

    async def use(queue: JobQueue) -> None:
        assert await queue.referenced_blobs([]) == []
        assert await queue.referenced_blobs([shared, own]) == [False, False]
        both = (await queue.submit(ENCODE)).id
        one = await queue.submit(ENCODE.model_copy(update={"sources": (BLOBS[0],) * 2}))
        assert await queue.referenced_blobs([shared, "c" * 64, own]) == [True, False, True]
        [claim] = consumer.claim(Slots(1, 1), is_idle=True).jobs
        assert claim.job_id == both
        consumer.release([claim], "quarantine")
        assert await queue.referenced_blobs([shared, own]) == [True, True]
        [claim] = consumer.claim(Slots(1, 1), is_idle=True).jobs
        consumer.finish([Outcome(claim, RESULT)])
        assert await queue.referenced_blobs([shared, own]) == [True, False]
        await queue.cancel(one.id)
        assert await queue.referenced_blobs([shared, own]) == [False, False]
        with redis.Redis.from_url(redis_url) as client:
            assert not client.exists(blob_key(shared)), "nothing is left behind"

    run(redis_url, use)


def test_seed_verdicts_come_from_living_workers(redis_url, consumer):
    verdict = SeedVerdict(worker="", is_kept=True, how="checked", rows=(1, 2, 4))
    other = Consumer(redis_url, ["tiny"], lease_s=1, max_tries=3, ageing_s=1)

    async def use(queue: JobQueue) -> None:
        assert await queue.checks.pipeline_states() == PipelineStates()
        consumer.phase = other.phase = "ready"
        consumer.seed_verdicts = {"tiny": verdict}
        other.seed_verdicts = {"tiny": verdict, "other": verdict}
        for each in (consumer, other):
            each.heartbeat([])
        told = (await queue.checks.pipeline_states()).verdicts
        mine = verdict.model_copy(update={"worker": consumer.name})
        theirs = verdict.model_copy(update={"worker": other.name})
        assert told == {"tiny": sorted([mine, theirs], key=lambda each: each.worker), "other": [theirs]}
        other.close()
        assert (await queue.checks.pipeline_states()).verdicts == {"tiny": [mine]}
        [worker] = (await queue.checks.metrics()).workers
        assert (worker.name, worker.seed_verdicts) == (consumer.name, {"tiny": mine})

    run(redis_url, use)


def test_a_job_whose_lease_ran_out_is_tried_again_and_fails_in_the_end(redis_url, consumer):
    async def use(queue: JobQueue) -> None:
        view = await queue.submit(REQUEST)
        consumer.reap()  # the first after a pause only watches
        for num_tries in (1, 2, 3):
            [claim] = consumer.claim(Slots(1, 1), is_idle=True).jobs
            await asyncio.to_thread(wait_until, lambda claim=claim: reaped(claim))
            view = await queue.get(view.id)
            assert view.num_tries == num_tries
            assert consumer.finish([Outcome(claim, RESULT)]) == [False]
        assert (view.status, view.error.code) == (JobStatus.FAILED, "worker_lost")

    def reaped(claim: Claim) -> bool:
        consumer.reap()
        return consumer.wait_for_revoked(0.01) == (claim.job_id, claim.execution)

    run(redis_url, use)


def test_a_full_queue_says_when_to_come_again(redis_url):
    async def use(queue: JobQueue) -> None:
        await queue.submit(REQUEST)
        await queue.submit(REQUEST.model_copy(update={"priority": "batch"}))
        with pytest.raises(QueueFull) as raised:
            await queue.submit(REQUEST)
        assert raised.value.retry_after_s >= 1

    run(redis_url, use, max_length=2)


def test_interactive_jobs_go_first_and_batch_jobs_age(redis_url, consumer):
    async def submit(queue: JobQueue) -> None:
        for priority in ("batch", "interactive"):
            for seed in range(4):
                await queue.submit(REQUEST.model_copy(update={"priority": priority, "seed": seed}))

    def order() -> list[str]:
        claims = consumer.claim(Slots(8, 8), is_idle=True)
        consumer.finish([Outcome(claim, RESULT) for claim in claims.jobs])
        return [claim.request.priority[0] for claim in claims.jobs]

    run(redis_url, submit)
    assert "".join(order()) == "iiiibbbb"

    async def submit_and_age(queue: JobQueue) -> None:
        await submit(queue)
        assert (await queue.submit(REQUEST.model_copy(update={"priority": "batch"}))).queue_position == 8
        await asyncio.sleep(0.25)

    run(redis_url, submit_and_age)
    assert "".join(order()) == "iiibibbbb"


def test_an_interactive_job_is_taken_also_where_the_batch_job_whose_turn_it_was_has_ended(
    redis_url, consumer
):
    async def submit(queue: JobQueue) -> None:
        await queue.submit(REQUEST.model_copy(update={"priority": "batch", "deadline_s": 0.1}))
        await asyncio.sleep(0.25)
        await queue.submit(REQUEST)

    with redis.Redis.from_url(redis_url) as client:
        client.set("smalti:batch_turn", 3)
    run(redis_url, submit)
    [claim] = consumer.claim(Slots(8, 8), is_idle=True).jobs
    assert claim.request.priority == "interactive"


def test_the_place_in_a_long_queue_is_told_without_asking_each_job(redis_url):
    async def use(queue: JobQueue) -> None:
        ids = [(await queue.submit(REQUEST)).id for _ in range(300)]
        with redis.Redis.from_url(redis_url) as client:
            client.hset(WORK_RATE, mapping={"seconds": 10, "cost": 10, "jobs": 1})
            client.config_resetstat()
            last = await queue.get(ids[-1])
            assert client.info("commandstats")["cmdstat_hget"]["calls"] < 100
        assert last.queue_position == 299
        assert last.seconds_left == 300 * (1 + REQUEST.options["num_steps"])
        assert (await queue.get(ids[0])).queue_position == 0

    run(redis_url, use, max_length=1000)


def test_claims_fill_the_slots(redis_url, consumer):
    async def submit(queue: JobQueue) -> None:
        for num_samples in (2, 1, 4, 1):
            await queue.submit(REQUEST.model_copy(update={"num_samples": num_samples}))

    run(redis_url, submit)
    assert [claim.num_slots for claim in consumer.claim(Slots(4, 4), is_idle=True).jobs] == [2, 1, 4]


def test_idle_workers_share_what_waits_and_a_busy_one_leaves_it_to_them(redis_url):
    consumers = [Consumer(redis_url, ["tiny"], lease_s=1, max_tries=3, ageing_s=9) for _ in range(3)]

    async def submit(queue: JobQueue) -> None:
        for seed in range(9):
            await queue.submit(REQUEST.model_copy(update={"seed": seed}))

    for consumer in consumers:
        assert consumer.claim(Slots(8, 8), is_idle=True).jobs == ()
    run(redis_url, submit)
    assert len(consumers[0].claim(Slots(8, 8), is_idle=True).jobs) == 3
    assert len(consumers[0].claim(Slots(8, 8), is_idle=False).jobs) == 0
    assert len(consumers[1].claim(Slots(8, 8), is_idle=True).jobs) == 3
    assert len(consumers[0].claim(Slots(8, 8), is_idle=False).jobs) == 0
    assert len(consumers[0].claim(Slots(8, 8), is_idle=False).jobs) == 3, (
        "each is asked once: the third may be dead"
    )
    for consumer in consumers:
        consumer.close()


def test_quarantined_jobs_take_turns_with_the_others(redis_url, consumer):
    async def submit(queue: JobQueue) -> None:
        for seed in range(4):
            await queue.submit(REQUEST.model_copy(update={"seed": seed}))

    run(redis_url, submit)
    consumer.release(consumer.claim(Slots(4, 4), is_idle=True).jobs, "quarantine")
    run(redis_url, submit)
    got = []
    for _ in range(6):
        claims = consumer.claim(Slots(2, 2), is_idle=True)
        got.append((len(claims.jobs), claims.must_drain))
        consumer.finish([Outcome(claim, RESULT) for claim in claims.jobs])
    alone, together = (1, True), (2, False)
    assert got == [alone, together, alone, together, alone, alone]


def test_unknown_jobs_are_not_found(redis_url):
    async def use(queue: JobQueue) -> None:
        for call in (queue.get("no"), queue.cancel("no"), queue.wait("no", 1), anext(queue.events("no"))):
            with pytest.raises(JobNotFound):
                await call

    run(redis_url, use)


def test_waiting_ends_with_the_job_and_with_the_time(redis_url, consumer):
    async def use(queue: JobQueue) -> None:
        clock = asyncio.get_running_loop().time
        view = await queue.submit(REQUEST)
        waits = [asyncio.create_task(queue.wait(view.id, 10)) for _ in range(100)]
        start = clock()
        assert (await queue.wait(view.id, 0.1)).status == JobStatus.QUEUED
        assert 0.09 < clock() - start < 1
        [claim] = consumer.claim(Slots(4, 4), is_idle=True).jobs
        consumer.finish([Outcome(claim, RESULT)])
        start = clock()
        assert {view.status for view in await asyncio.gather(*waits)} == {JobStatus.SUCCEEDED}
        assert clock() - start < 1
        assert (await queue.wait(view.id, 10)).status == JobStatus.SUCCEEDED
        with redis.Redis.from_url(redis_url) as client:
            assert client.pubsub_numsub(JOB_EVENTS)[0][1] == 1, "one reader for all"

    run(redis_url, use)


def test_a_job_that_was_watched_before_it_was_there_is_looked_up_when_it_ends(redis_url, consumer):
    async def use(queue: JobQueue) -> None:
        job_id = new_job_id()
        with queue.watch(job_id) as watcher, redis.Redis.from_url(redis_url) as client:
            await asyncio.wait_for(watcher.has_news.wait(), 5)  # the subscription
            watcher.has_news.clear()
            await queue.submit(REQUEST, job_id)
            client.config_resetstat()
            waiting = asyncio.create_task(queue.wait(job_id, 10, watcher))
            await asyncio.sleep(0.2)
            assert "cmdstat_hmget" not in client.info("commandstats")
            [claim] = consumer.claim(Slots(4, 4), is_idle=True).jobs
            consumer.finish([Outcome(claim, RESULT)])
            assert (await asyncio.wait_for(waiting, 5)).status == JobStatus.SUCCEEDED

    run(redis_url, use)


def test_a_job_that_ends_before_its_watcher_waits_is_not_missed(redis_url, consumer):
    async def use(queue: JobQueue) -> None:
        job_id = new_job_id()
        with queue.watch(job_id) as watcher:
            await queue.submit(REQUEST, job_id)
            [claim] = consumer.claim(Slots(4, 4), is_idle=True).jobs
            consumer.finish([Outcome(claim, RESULT)])
            await asyncio.wait_for(watcher.has_news.wait(), 5)
            done = await asyncio.wait_for(queue.wait(job_id, 10, watcher), 5)
            assert done.status == JobStatus.SUCCEEDED

    run(redis_url, use)


def test_a_cancelled_job_belongs_to_no_worker(redis_url, consumer):
    async def use(queue: JobQueue) -> None:
        queued, running, done = [(await queue.submit(REQUEST)).id for _ in range(3)]
        assert (await queue.cancel(queued)).status == JobStatus.CANCELLED
        [claim, other] = consumer.claim(Slots(2, 2), is_idle=True).jobs
        consumer.finish([Outcome(other, RESULT)])
        assert (await queue.cancel(running)).status == JobStatus.CANCELLED
        assert consumer.wait_for_revoked(1) == (running, claim.execution)
        assert consumer.heartbeat([claim]) == [claim]
        assert consumer.finish([Outcome(claim, RESULT)]) == [False]
        view = await queue.cancel(running)
        assert (view.status, view.result) == (JobStatus.CANCELLED, None)
        assert (await queue.cancel(done)).status == JobStatus.SUCCEEDED, "an end is final"
        assert (await queue.checks.check()).queue_length == 0

    run(redis_url, use)


def test_a_queued_job_ends_at_its_deadline_without_any_worker(redis_url, consumer):
    async def use(queue: JobQueue) -> None:
        hurried = REQUEST.model_copy(update={"deadline_s": 0.05})
        view, left = await queue.submit(hurried), await queue.submit(hurried)
        await asyncio.sleep(0.1)
        view = await queue.get(view.id)
        assert view.status == JobStatus.FAILED
        assert view.error.code == "deadline_exceeded"
        consumer.reap()
        assert consumer.claim(Slots(4, 4), is_idle=True).jobs == ()
        assert (await queue.get(left.id)).error.code == "deadline_exceeded"
        assert (await queue.checks.check()).queue_length == 0

    run(redis_url, use)


def test_waiting_ends_at_the_deadline_without_any_worker(redis_url):
    async def use(queue: JobQueue) -> None:
        clock = asyncio.get_running_loop().time
        view = await queue.submit(REQUEST.model_copy(update={"deadline_s": 0.05}))
        start = clock()
        view = await queue.wait(view.id, 10)
        assert clock() - start < 2
        assert view.status == JobStatus.FAILED
        assert view.error.code == "deadline_exceeded"

    run(redis_url, use)


def test_a_worker_that_lost_a_job_cannot_change_it(redis_url, consumer):
    async def use(queue: JobQueue) -> None:
        view = await queue.submit(REQUEST)
        [first] = consumer.claim(Slots(4, 4), is_idle=True).jobs
        consumer.release([first], "front")
        assert (await queue.get(view.id)).num_tries == 0
        [second] = consumer.claim(Slots(4, 4), is_idle=True).jobs
        assert consumer.finish([Outcome(first, StorageFull("late"))]) == [False]
        assert consumer.finish([Outcome(second, RESULT)]) == [True]
        assert consumer.finish([Outcome(second, RESULT)]) == [True], "told twice after a lost answer"
        assert consumer.finish([Outcome(second, StorageFull("late"))]) == [False]
        assert (await queue.get(view.id)).status == JobStatus.SUCCEEDED

    run(redis_url, use)


def test_foreign_jobs_are_refused_and_never_called(redis_url, consumer):
    with redis.Redis.from_url(redis_url) as client:
        queue = Queue("interactive", connection=client, serializer=JSONSerializer)
        good = {"request": REQUEST.model_dump(mode="json")}
        jobs = [
            queue.enqueue("os.getcwd"),
            queue.enqueue("generate", request={"seed": "no"}),
            queue.enqueue("generate", kwargs=good, on_success=Callback("os.getcwd")),
            Queue("interactive", connection=client).enqueue("os.getcwd"),  # pickled
        ]
        assert consumer.claim(Slots(4, 4), is_idle=True).jobs == ()
        assert [client.hget(job.key, "error_code") for job in jobs] == [InvalidRequest.code.encode()] * 4
        assert client.zcard("smalti:leases") == 0


def test_an_ended_job_keeps_little(redis_url, consumer):
    """A finished encode of one image: hash, entries in registries, and nothing else, 1.5 KB at most."""
    encode = ENCODE.model_copy(update={"num_samples": 1, "sources": ENCODE.sources[:1]})
    codes = CodesInfo(grid=(16, 16), codebook_size=4096, tokenizer="0" * 16)
    warning = "pipeline: none was named, so this one encodes; return_psnr tells how well it does" * 2
    result = Result(
        operation="encode",
        pipeline="emoji-64",
        outputs=[Output(sample=0, medium="image")],
        codes=codes,
        warnings=[warning],
    )

    async def use(queue: JobQueue) -> None:
        for _ in range(200):
            await queue.submit(encode)
        for _ in range(50):
            claims = consumer.claim(Slots(4, 4), is_idle=True).jobs
            consumer.publish_progress([(claim, Progress(step=1, total=1)) for claim in claims])
            consumer.finish([Outcome(claim, result) for claim in claims])
        view = await queue.get(claims[0].job_id)
        assert (view.result, view.progress) == (result, Progress(step=1, total=1))

    with redis.Redis.from_url(redis_url) as client:
        used = client.info("memory")["used_memory"]
        run(redis_url, use, max_length=1000)
        assert (client.info("memory")["used_memory"] - used) / 200 < 1500
        keys = {key for key in client.scan_iter() if b":job:" not in key}
        assert not [key for key in keys if b"events:" in key or b"results:" in key or b"blob:" in key]


def test_the_time_left_counts_the_work_before_a_job(redis_url, consumer):
    async def use(queue: JobQueue) -> None:
        small = REQUEST.model_copy(update={"options": {"num_steps": 1}})
        large = REQUEST.model_copy(update={"options": {"num_steps": 99}, "num_samples": 4})
        view = await queue.submit(small)
        assert (await queue.get(view.id)).seconds_left is None, "nothing is known yet"
        [claim] = consumer.claim(Slots(1, 1), is_idle=True).jobs
        await asyncio.sleep(0.1)
        consumer.finish([Outcome(claim, RESULT)])  # 0.1 s for a cost of 2
        running, waiting, last = [await queue.submit(each) for each in (large, large, small)]
        [claim] = consumer.claim(Slots(1, 1), is_idle=True).jobs
        assert claim.job_id == running.id
        first, second = [(await queue.get(each.id)).seconds_left for each in (waiting, last)]
        assert 0.9 < first / (800 * 0.05) < 2
        assert second == pytest.approx(first * 802 / 800, rel=0.01)
        consumer.publish_progress([(claim, Progress(step=3, total=4))])
        assert (await queue.get(last.id)).seconds_left == pytest.approx(second * 502 / 802, rel=0.01)

    run(redis_url, use)
