"""Webhooks that wait in Redis, from the end of what they tell until they are delivered or given up.

A script enqueues one together with the end of its job (``finish`` in ``workers/queue/lua/prelude.lua``), so
none is lost. Whoever delivers one holds it for a lease: a process that dies leaves it to another, which may
send it once more. Nobody changes one that has been claimed by another meanwhile.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis.asyncio

from app.redis_connections import available
from workers.messages import WebhookState, WebhookStatus
from workers.queue.records import result_key, webhook_state, webhook_told_key
from workers.queue.scripts import load_script

LEASE_S = 45.0  # longer than any attempt


@dataclass(frozen=True)
class Pending:
    """A webhook that is to be sent now.

    id: the same in every attempt. claim: the number of this hold on it. host: with its port. attempts: before
    this one. fields: of the job that has ended, as its hash had them. body: what was sent before.
    """

    id: str
    claim: str
    url: str
    host: str
    attempts: int
    fields: Mapping[str, str]
    body: str | None


class WebhookQueue:
    """All methods may raise QueueUnavailable."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._redis = client
        self._enqueue = client.register_script(load_script("enqueue_webhook"))
        self._claim = client.register_script(load_script("claim_webhooks"))
        self._settle = client.register_script(load_script("settle_webhook"))

    async def enqueue(self, message_id: str, url: str, body: str, *, told_for_s: int) -> None:
        """Have a message sent that is not the end of a job; what came of it is told for so long."""
        async with available():
            await self._enqueue(args=[message_id, url, body, told_for_s])

    async def states(self, message_ids: Sequence[str]) -> dict[str, WebhookState]:
        """Return what came of messages that are not ends of jobs, as far as that is still told."""
        async with available(), self._redis.pipeline(transaction=False) as pipeline:
            for message_id in message_ids:
                pipeline.hget(webhook_told_key(message_id), "webhook")
            found = await pipeline.execute() if message_ids else []
        return {each: webhook_state(text) for each, text in zip(message_ids, found, strict=True) if text}

    async def claim(self, limit: int, limit_per_host: int, busy: Mapping[str, int]) -> Sequence[Pending]:
        """Take so many webhooks that are due, for LEASE_S.

        busy: how many the caller is sending already, by host.
        """
        sent_to = [part for item in busy.items() for part in item]
        async with available():
            flat: Any = await self._claim(args=[LEASE_S, limit, limit_per_host, *sent_to])
        found = []
        for message_id, each in zip(flat[::2], flat[1::2], strict=True):
            fields = dict(zip(each[::2], each[1::2], strict=True))
            found.append(
                Pending(
                    id=message_id,
                    claim=fields["claim"],
                    url=fields["url"],
                    host=fields["host"],
                    attempts=int(fields["attempts"]),
                    fields=fields,
                    body=fields.get("body"),
                )
            )
        return found

    async def result(self, job_id: str) -> str | None:
        """Return the result of a job in JSON, while there is one."""
        async with available():
            found: Any = await self._redis.get(result_key(job_id))
            return None if found is None else str(found)

    async def settle(
        self, pending: Pending, status: WebhookStatus, *, again_in_s: float = 0, body: str = ""
    ) -> None:
        """Count an attempt and write down what came of it; with ``pending``, it is made again.

        body: what was sent, so that every attempt says the same; "" leaves what there is.
        """
        async with available():
            await self._settle(args=[pending.id, pending.claim, status, again_in_s, body])
