"""The ends of batches, told to the addresses that their clients named."""

import asyncio
from collections.abc import Sequence

from app.batches.records import BatchRecord
from app.batches.views import BatchView, batch_view
from app.services import Services
from workers.errors import QueueUnavailable
from workers.messages import Message, WebhookState

_NOT_YET = WebhookState(status="pending", attempts=0)


class BatchEnded(Message):
    """What is sent: ``type`` is batch.succeeded, batch.failed or batch.cancelled."""

    type: str
    timestamp: str
    data: BatchView


async def tell_ends(services: Services) -> None:
    """Enqueue the webhooks of batches that have ended. One that dies in between may tell an end again.

    Raises: QueueUnavailable; StorageUnavailable.
    """
    for record in await asyncio.to_thread(services.batches.untold):
        view = batch_view(record, services.batches.ttl_s, _NOT_YET)
        assert record.webhook_url is not None
        assert view.ended_at is not None
        told = BatchEnded(type=f"batch.{view.status}", timestamp=view.ended_at.isoformat(), data=view)
        await services.queue.webhooks.enqueue(
            record.id, record.webhook_url, told.model_dump_json(), told_for_s=services.batches.ttl_s
        )
        await asyncio.to_thread(services.batches.mark_told, record.id)


async def views(records: Sequence[BatchRecord], services: Services) -> list[BatchView]:
    """Return batches as their clients see them; how their webhooks are only while the queue answers."""
    told = [record.id for record in records if record.is_told]
    try:
        states = await services.queue.webhooks.states(told) if told else {}
    except QueueUnavailable:
        states = {}
    found = []
    for record in records:
        is_awaited = record.webhook_url is not None and not record.is_told
        webhook = _NOT_YET if is_awaited else states.get(record.id)
        found.append(batch_view(record, services.batches.ttl_s, webhook))
    return found
