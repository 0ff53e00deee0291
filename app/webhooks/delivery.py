"""Deliver webhooks: a task of the front end, beside others of other processes."""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from app.codes import with_addresses
from app.keys import Keys, current_key
from app.services import Services
from app.webhooks.queue import Pending
from app.webhooks.sender import Attempt, Sender
from workers.errors import QueueUnavailable
from workers.messages import JobView, Message
from workers.queue.records import job_view

logger = logging.getLogger(__name__)

MAX_AT_ONCE = 16
MAX_AT_ONCE_PER_HOST = 4  # so that one that answers slowly holds up no other
POLL_S = 0.2


class JobEnded(Message):
    """What is sent: ``type`` is job.succeeded, job.failed or job.cancelled."""

    type: str
    timestamp: str
    data: JobView


class Delivery:
    """Sends what is due, again with these delays between attempts, until it is delivered or given up."""

    def __init__(self, services: Services, keys: Keys, sender: Sender, delays_s: Sequence[float]) -> None:
        self._queue = services.queue.webhooks
        self._services = services
        self._keys = keys
        self._sender = sender
        self._delays_s = delays_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._num_by_host: Counter[str] = Counter()
        self._has_room = asyncio.Event()

    async def run(self) -> None:
        """Deliver until cancelled; what is under way then is sent again once its lease has run out."""
        try:
            while True:
                self._has_room.clear()
                with suppress(QueueUnavailable):  # which is logged already
                    await self._begin_due()
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await self._has_room.wait()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._sender.close()

    async def _begin_due(self) -> None:
        """Begin to send what is due, as far as there is room."""
        num_free = MAX_AT_ONCE - len(self._tasks)
        if not num_free:
            return
        for pending in await self._queue.claim(num_free, MAX_AT_ONCE_PER_HOST, self._num_by_host):
            self._num_by_host[pending.host] += 1
            task = asyncio.create_task(self._deliver(pending))
            self._tasks.add(task)
            task.add_done_callback(partial(self._end, pending.host))

    def _end(self, host: str, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._num_by_host[host] -= 1
        if not self._num_by_host[host]:
            del self._num_by_host[host]
        self._has_room.set()

    async def _deliver(self, pending: Pending) -> None:
        body = pending.body or ""
        try:
            body = body or await self._body(pending)
            attempt = await self._sender.send(pending.url, pending.id, body)
        except QueueUnavailable:  # which is logged already; the lease runs out
            return
        except Exception as error:  # the boundary of a message: the others are sent
            logger.exception("webhook=%s could not be sent", pending.id)
            attempt = Attempt(False, False, type(error).__name__)
        with suppress(QueueUnavailable):
            await self._settle(pending, attempt, body)

    async def _settle(self, pending: Pending, attempt: Attempt, body: str) -> None:
        about = f"webhook={pending.id} host={pending.host} attempt={pending.attempts + 1} {attempt.told}"
        if attempt.is_delivered:
            logger.info("%s, delivered", about)
            await self._queue.settle(pending, "delivered")
        elif attempt.is_final or pending.attempts >= len(self._delays_s):
            logger.warning("%s, given up", about)
            await self._queue.settle(pending, "failed")
        else:
            delay_s = self._delays_s[pending.attempts]
            logger.info("%s, again in %g s", about, delay_s)
            await self._queue.settle(pending, "pending", again_in_s=delay_s, body=body)

    async def _body(self, pending: Pending) -> str:
        """Return the message of a job's end: as its own key would be shown it, without codes."""
        job = job_view(pending.id, pending.fields, await self._queue.result(pending.id))
        token = current_key.set(self._keys.named(pending.fields.get("owner", "")))
        try:
            job = with_addresses(job, self._services)
        finally:
            current_key.reset(token)
        assert job.ended_at is not None
        return JobEnded(
            type=f"job.{job.status}", timestamp=job.ended_at.isoformat(), data=job
        ).model_dump_json()
