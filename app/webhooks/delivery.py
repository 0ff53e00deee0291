"""Deliver webhooks: a task of the front end, beside others of other processes."""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from urllib.parse import urlsplit

from app.codes import with_addresses
from app.keys import Keys, current_key
from app.services import Services
from app.webhooks.queue import Pending
from app.webhooks.sender import Sender
from workers.errors import QueueUnavailable
from workers.messages import JobView, Message
from workers.queue.records import job_view

logger = logging.getLogger(__name__)

MAX_AT_ONCE = 16
MAX_AT_ONCE_PER_HOST = 4  # so that one that answers slowly holds up no other
POLL_S = 0.2
POSTPONE_S = 1.0


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

    async def run(self) -> None:
        """Deliver until cancelled; what is under way then is sent again once its lease has run out."""
        try:
            while True:
                try:
                    has_more = await self._begin_due()
                except QueueUnavailable:  # which is logged already
                    has_more = False
                if not has_more:
                    await asyncio.sleep(POLL_S)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._sender.close()

    async def _begin_due(self) -> bool:
        """Begin to send what is due; say whether there may be more of it."""
        while len(self._tasks) >= MAX_AT_ONCE:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        num_free = MAX_AT_ONCE - len(self._tasks)
        due = await self._queue.claim(num_free)
        for pending in due:
            host = _host_of(pending)
            if self._num_by_host[host] >= MAX_AT_ONCE_PER_HOST:
                await self._queue.postpone(pending, POSTPONE_S)
                continue
            self._num_by_host[host] += 1
            task = asyncio.create_task(self._deliver(pending, host))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return len(due) == num_free

    async def _deliver(self, pending: Pending, host: str) -> None:
        try:
            body = pending.body if pending.body is not None else await self._body(pending)
            attempt = await self._sender.send(pending.url, pending.id, body)
            about = f"webhook={pending.id} host={host} attempt={pending.attempts + 1} {attempt.told}"
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
        except QueueUnavailable:
            pass  # which is logged already; the lease runs out
        except Exception:  # the boundary of a message: the others are sent
            logger.exception("webhook=%s could not be sent", pending.id)
        finally:
            self._num_by_host[host] -= 1
            if not self._num_by_host[host]:
                del self._num_by_host[host]

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


def _host_of(pending: Pending) -> str:
    return urlsplit(pending.url).netloc.lower()
