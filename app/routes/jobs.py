"""Jobs and their images."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from app.answers import job_response, wait_for
from app.errors import NotAcceptable
from app.negotiation import best_media_type, parse_prefer
from app.openapi import (
    CANCELLED_JOB,
    GENERATED_JOB,
    PREFER,
    QUEUED_JOB,
    RUNNING_JOB,
    image_responses,
    one_job_response,
    problems,
)
from app.services import ServicesNeeded
from workers.errors import JobNotFound

router = APIRouter(prefix="/jobs", tags=["jobs"])

JobId = Annotated[str, Path(description="32 hexadecimal digits.", examples=[QUEUED_JOB.id])]


@router.get(
    "/{job_id}",
    operation_id="get_job",
    summary="Look a job up",
    responses=one_job_response(
        200, "The job as it is.", queued=QUEUED_JOB, running=RUNNING_JOB, finished=GENERATED_JOB
    )
    | problems("job_not_found", "queue_unavailable"),
    openapi_extra={"parameters": [PREFER]},
)
async def get_job(http: HttpRequest, job_id: JobId, services: ServicesNeeded) -> Response:
    """Show a job. With `Prefer: wait=N`, once it has ended, or N seconds later."""
    preferences = parse_prefer(http.headers.getlist("prefer"))
    job = await services.queue.get(job_id)
    if preferences.wait_s is None or job.status.is_terminal:
        return job_response(job)
    wait_s = min(preferences.wait_s, services.settings.max_wait_s)
    job = await wait_for(http, job, wait_s, preferences, services)
    return job_response(job, headers={"Preference-Applied": f"wait={wait_s:g}"})


@router.delete(
    "/{job_id}",
    operation_id="cancel_job",
    summary="Cancel a job",
    responses=one_job_response(
        200, "The job has ended, by this or before.", cancelled=CANCELLED_JOB, finished=GENERATED_JOB
    )
    | one_job_response(202, "The job ends with its next step.", running=RUNNING_JOB)
    | problems("job_not_found", "queue_unavailable"),
)
async def cancel_job(job_id: JobId, services: ServicesNeeded) -> Response:
    """Cancel a job that waits or runs. One that has ended stays as it is."""
    job = await services.queue.cancel(job_id)
    return job_response(job, 200 if job.status.is_terminal else 202)


@router.get(
    "/{job_id}/images/{index}",
    operation_id="get_image",
    summary="Fetch an image of a job",
    response_class=Response,
    responses=image_responses()
    | problems("job_not_found", "not_acceptable", "invalid_request", "queue_unavailable"),
)
async def get_image(
    http: HttpRequest,
    job_id: JobId,
    index: Annotated[int, Path(ge=0, description="From 0.", examples=[0])],
    services: ServicesNeeded,
) -> Response:
    """Send an image's bytes. They never change, so they may be cached as long as one likes."""
    try:
        artifact = await asyncio.to_thread(services.artifacts.read, job_id, index)
    except JobNotFound as error:
        job = await services.queue.get(job_id)
        raise JobNotFound(f"{error}; the job is {job.status}") from None
    accept = ",".join(http.headers.getlist("accept")) or None
    if best_media_type(accept, [artifact.media_type]) is None:
        raise NotAcceptable(f"Accept: this image is {artifact.media_type}; got {(accept or '')[:200]}")
    etag = f'"{artifact.sha256}"'
    headers = {"ETag": etag, "Cache-Control": "public, max-age=31536000, immutable"}
    known = {tag.strip().removeprefix("W/") for tag in http.headers.get("if-none-match", "").split(",")}
    if known & {etag, "*"}:
        return Response(status_code=304, headers=headers)
    return Response(artifact.data, 200, headers, media_type=artifact.media_type)
