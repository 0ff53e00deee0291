"""A queue server that goes away, changes, or takes nothing."""

import asyncio

import pytest
import redis

from app.queue import JobQueue
from tests.app.queue_jobs import REQUEST, run
from workers.errors import (
    QueueUnavailable,
)
from workers.messages import (
    JobStatus,
)
from workers.queue import embedded_server


def test_a_server_that_takes_no_writes_is_not_available(own_redis):
    async def use(queue: JobQueue) -> None:
        await queue.checks.check()
        with redis.Redis.from_url(own_redis.url) as client:
            client.config_set("maxmemory", 1)
            with pytest.raises(QueueUnavailable):
                await queue.checks.check()
            client.config_set("maxmemory", 0)
        await queue.checks.check()

    run(own_redis.url, use)


def test_a_connection_that_the_server_closed_is_not_noticed(own_redis):
    async def use(queue: JobQueue) -> None:
        view = await queue.submit(REQUEST)
        with redis.Redis.from_url(own_redis.url) as client:
            for _ in range(5):
                client.client_kill_filter(_type="normal", skipme=True)
                assert (await queue.get(view.id)).status == JobStatus.QUEUED
                client.client_kill_filter(_type="normal", skipme=True)
                await queue.submit(REQUEST.model_copy(update={"priority": "batch"}))
            client.config_set("timeout", 1)
            await asyncio.sleep(2.2)
            assert (await queue.submit(REQUEST)).status == JobStatus.QUEUED

    run(own_redis.url, use)


def test_a_failover_is_not_noticed(own_redis):
    """The server takes no writes for a moment, as one that has become a replica."""

    async def use(queue: JobQueue) -> None:
        await queue.submit(REQUEST)
        with redis.Redis.from_url(own_redis.url) as client:
            client.replicaof("127.0.0.1", "1")
            submitting = asyncio.create_task(queue.submit(REQUEST))
            await asyncio.sleep(0.2)
            assert not submitting.done()
            client.replicaof("NO", "ONE")
        assert (await submitting).status == JobStatus.QUEUED

    run(own_redis.url, use)


def test_a_dead_server_is_told_at_once_and_a_new_one_found(own_redis):
    async def use(queue: JobQueue) -> None:
        view = await queue.submit(REQUEST)
        waiting = asyncio.create_task(queue.wait(view.id, 10))
        await asyncio.sleep(0.1)
        with redis.Redis.from_url(own_redis.url) as client:
            client.shutdown()
        start = asyncio.get_running_loop().time()
        for call in (queue.checks.check(), queue.get(view.id), queue.submit(REQUEST)):
            with pytest.raises(QueueUnavailable):
                await call
        assert asyncio.get_running_loop().time() - start < 5
        again = await asyncio.to_thread(embedded_server.start, own_redis.data_dir)
        assert (await queue.get(view.id)).status == JobStatus.QUEUED
        await queue.cancel(view.id)
        assert (await waiting).status == JobStatus.CANCELLED
        await asyncio.to_thread(again.stop)

    run(own_redis.url, use)
