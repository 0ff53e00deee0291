"""GET /jobs/{id}/events: what happens to a job, as server-sent events."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Header
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response, StreamingResponse

from app.codes import with_codes
from app.event_stream import EVENT_STREAM, HEADERS, KEEP_ALIVE, with_signs_of_life
from app.examples import GENERATED_JOB
from app.job_events import JobEvent
from app.openapi import Responses, event_stream, problems
from app.routes.places import JobId
from app.services import Services, ServicesNeeded
from workers.errors import JobNotFound, QueueUnavailable
from workers.messages import JobStatus, JobView, PreviewImage, Progress

router = APIRouter(tags=["jobs"])

RETRY_MS = 1000


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
        "content": event_stream(_EXAMPLE, JobUpdate),
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
    return StreamingResponse(_stream(events, services), headers=HEADERS, media_type=EVENT_STREAM)


async def _replay(events: list[JobEvent]) -> AsyncGenerator[JobEvent]:
    for event in events:
        yield event


async def _stream(events: AsyncGenerator[JobEvent], services: Services) -> AsyncIterator[str]:
    """Yield events as text, and comments while there are none.

    Ends early where the queue server or this process goes away: the client connects again, and goes on
    after the last event that it has.
    """
    yield f"retry: {RETRY_MS}\n\n"
    try:
        async with aclosing(with_signs_of_life(events, services)) as following:
            async for event in following:
                yield KEEP_ALIVE if event is None else await _text(event, services)
    except (QueueUnavailable, JobNotFound):
        return


async def _text(event: JobEvent, services: Services) -> str:
    job = None if event.job is None else await with_codes(event.job, services)
    update = JobUpdate(status=event.status, progress=event.progress, preview=event.preview, job=job)
    return f"id: {event.id}\nevent: {event.kind}\ndata: {update.model_dump_json(exclude_none=True)}\n\n"
