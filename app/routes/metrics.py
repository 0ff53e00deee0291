"""GET /metrics."""

import asyncio

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from app.batches.metrics import batch_families
from app.metrics import render
from app.services import ServicesNeeded
from workers.errors import QueueUnavailable, StorageUnavailable

router = APIRouter(tags=["health"])


@router.get(
    "/metrics",
    operation_id="get_metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={
        200: {
            "description": "In the text format of Prometheus.",
            "content": {"text/plain": {"schema": {"type": "string"}, "example": "smalti_queue_up 1.0\n"}},
        }
    },
)
async def get_metrics(http: HttpRequest, services: ServicesNeeded) -> Response:
    """Show what this process, the queue and all workers have counted; without a queue, what is left."""
    try:
        queue = await services.queue.checks.metrics()
    except QueueUnavailable:
        queue = None
    try:
        unfinished = await asyncio.to_thread(services.batches.unfinished)
    except StorageUnavailable:
        unfinished = []
    text = render(http.app.state.http_metrics, queue, batch_families(unfinished))
    return Response(text, media_type=CONTENT_TYPE_LATEST)
