"""GET /jobs/{id}/events: what happens to a job, as server-sent events."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Header
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response, StreamingResponse

from app.codes import with_codes
from app.examples import GENERATED_JOB
from app.job_events import JobEvent
from app.openapi import Responses, problems
from app.routes.places import JobId
from app.services import Services, ServicesNeeded
from workers.errors import JobNotFound, QueueUnavailable, ServiceError
from workers.messages import JobStatus, JobView, PreviewImage, Progress

router = APIRouter(tags=["jobs"])

KEEP_ALIVE_S = 15.0  # proxies close a silent connection, often after 30 or 60 seconds
RETRY_MS = 1000
MAX_UNSENT = 16  # events; a client that reads slower misses previews
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class JobUpdate(BaseModel):
    """The data of an event."""

    model_config = ConfigDict(frozen=True)

    status: JobStatus
    progress: Progress | None = None
    preview: PreviewImage | None = None
    job: JobView | None = Field(default=None, description="The whole job, once it has ended.")


_EXAMPLE = "".join(
    f"id: 1767323045{number:03}-0\nevent: {kind}\ndata: {update.model_dump_json(exclude_none=True)}\n\n"
    for number, kind, update in (
        (10, "status", JobUpdate(status=JobStatus.RUNNING)),
        (200, "progress", JobUpdate(status=JobStatus.RUNNING, progress=Progress(step=8, total=16))),
        (400, "status", JobUpdate(status=JobStatus.SUCCEEDED, job=GENERATED_JOB)),
    )
)

_RESPONSES: Responses = {
    200: {
        "description": (
            "Events of kind `status`, `progress` and, if the request has `preview`, `preview`; the one that"
            " ends the job is the last. Of previews only the latest is kept, and none when the job has ended."
        ),
        "content": {"text/event-stream": {"schema": {"type": "string"}, "example": _EXAMPLE}},
    },
    204: {"description": "The job has ended, and the client has heard of it."},
}


@router.get(
    "/jobs/{job_id}/events",
    operation_id="follow_job",
    summary="Follow a job",
    response_class=Response,
    responses=_RESPONSES | problems("job_not_found", "queue_unavailable"),
)
async def follow_job(
    job_id: JobId,
    services: ServicesNeeded,
    last_event_id: Annotated[
        str | None,
        Header(description="Go on after this event, which browsers send; from the start where it is none."),
    ] = None,
) -> Response:
    """Send what has happened to the job, and then what happens, until it has ended."""
    job = await services.queue.get(job_id)
    events = services.queue.events(job_id, last_event_id)
    if job.status.is_terminal and last_event_id is not None:
        missed = [event async for event in events]
        if not missed:
            return Response(status_code=204)  # tells a browser not to connect again
        events = _replay(missed)
    return StreamingResponse(_stream(events, services), headers=_HEADERS, media_type="text/event-stream")


async def _replay(events: list[JobEvent]) -> AsyncGenerator[JobEvent]:
    for event in events:
        yield event


async def _stream(events: AsyncGenerator[JobEvent], services: Services) -> AsyncIterator[str]:
    """Yield events as text, and comments while there are none.

    Ends early where the queue server or this process goes away: the client connects again, and goes on
    after the last event that it has.
    """
    yield f"retry: {RETRY_MS}\n\n"
    unsent: asyncio.Queue[JobEvent | None] = asyncio.Queue(MAX_UNSENT)
    tasks = [
        asyncio.create_task(_follow(events, unsent)),
        asyncio.create_task(_wait_for_end(services, unsent)),
    ]
    try:
        while True:
            try:
                async with asyncio.timeout(KEEP_ALIVE_S):
                    event = await unsent.get()
            except TimeoutError:
                yield ": \n\n"
                continue
            if event is None:
                return
            yield await _text(event, services)
    except (QueueUnavailable, JobNotFound):
        return
    finally:
        for task in tasks:
            task.cancel()


async def _follow(events: AsyncGenerator[JobEvent], unsent: asyncio.Queue[JobEvent | None]) -> None:
    """Pass events on, in a task of its own: when it is cancelled, the generator is surely closed."""
    try:
        async with aclosing(events):
            async for event in events:
                await unsent.put(event)
    except ServiceError:
        pass  # the client connects again, and hears of it
    await unsent.put(None)


async def _wait_for_end(services: Services, unsent: asyncio.Queue[JobEvent | None]) -> None:
    await services.is_ending.wait()
    await unsent.put(None)


async def _text(event: JobEvent, services: Services) -> str:
    job = None if event.job is None else await with_codes(event.job, services)
    update = JobUpdate(status=event.status, progress=event.progress, preview=event.preview, job=job)
    return f"id: {event.id}\nevent: {event.kind}\ndata: {update.model_dump_json(exclude_none=True)}\n\n"
