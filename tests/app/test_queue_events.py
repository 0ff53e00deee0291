"""Who follows a job, from the queue on."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import redis

from app.queue import JobQueue
from tests.app.queue_jobs import REQUEST, RESULT, run
from workers.compute import Slots
from workers.messages import (
    JobStatus,
    Progress,
)
from workers.queue.consumer import Outcome


def test_events_replay_and_follow(redis_url, consumer):
    async def use(queue: JobQueue) -> None:
        view = await queue.submit(REQUEST)
        events = queue.events(view.id)
        first = await anext(events)
        assert first.status == JobStatus.QUEUED
        rest: Coroutine[Any, Any, list[Any]] = _collect(events)
        following = asyncio.create_task(rest)
        await asyncio.sleep(0.05)
        [claim] = consumer.claim(Slots(4, 4), is_idle=True).jobs
        consumer.publish_progress([(claim, Progress(step=2, total=4))])
        late = queue.events(view.id, first.id)
        assert [(await anext(late)).status for _ in range(2)] == ["running", "running"]
        consumer.finish([Outcome(claim, RESULT)])
        seen = await following
        assert [event.status for event in seen] == ["running", "running", "succeeded"]
        assert seen[1].progress == Progress(step=2, total=4)
        assert seen[-1].job == await queue.get(view.id)
        assert await _collect(late) == seen[2:]
        assert await _collect(queue.events(view.id)) == seen[2:], "of a job that has ended, the end"
        assert await _collect(queue.events(view.id, seen[-1].id)) == []

    run(redis_url, use)


def test_all_who_follow_a_job_share_one_reader(redis_url, consumer):
    async def use(queue: JobQueue) -> None:
        view = await queue.submit(REQUEST)
        with redis.Redis.from_url(redis_url) as client:
            client.config_resetstat()
            following = [asyncio.create_task(_collect(queue.events(view.id))) for _ in range(1200)]
            await asyncio.sleep(0.3)
            [claim] = consumer.claim(Slots(1, 1), is_idle=True).jobs
            for step in range(1, 4):
                consumer.publish_progress([(claim, Progress(step=step, total=4))])
                await asyncio.sleep(0.02)
                assert (await queue.checks.check()).queue_length == 0, "answers in time"
            consumer.finish([Outcome(claim, RESULT)])
            seen = await asyncio.gather(*following)
            assert {event.status for events in seen for event in events[-1:]} == {JobStatus.SUCCEEDED}
            assert all(events == seen[0] for events in seen)
            assert client.info("commandstats")["cmdstat_xrange"]["calls"] < 10
        assert not queue._job_events._feeds

    run(redis_url, use)


def test_following_ends_at_the_deadline_without_any_worker(redis_url):
    async def use(queue: JobQueue) -> None:
        view = await queue.submit(REQUEST.model_copy(update={"deadline_s": 0.05}))
        async with asyncio.timeout(2):
            *_, last = await _collect(queue.events(view.id))
        assert (last.status, last.job.error.code) == (JobStatus.FAILED, "deadline_exceeded")

    run(redis_url, use)


async def _collect(events: Any) -> list[Any]:
    return [event async for event in events]
