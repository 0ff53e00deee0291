"""Jobs: list, look up, wait for, cancel, try again."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from app.codes import with_addresses
from app.examples import CANCELLED_JOB, GENERATED_JOB, QUEUED_JOB, RETRY_EXAMPLES, RUNNING_JOB
from app.job_list import CURSOR, MAX_JOBS
from app.keys import current_owner
from app.negotiation import parse_prefer
from app.openapi import (
    IDEMPOTENCY_KEY,
    PREFER,
    PREFER_WAIT,
    WORK_FAILURES,
    job_responses,
    one_job_response,
    problems,
)
from app.routes.bodies import JsonRoute
from app.routes.places import JobId
from app.services import ServicesNeeded
from app.submit import answer_retry, job_response, wait_for
from workers.messages import JobStatus, JobView, Operation, RetryRequest

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=JsonRoute)


_PAGE: Any = {"jobs": [QUEUED_JOB.model_dump(mode="json")], "next": f"1767323045.123456-{QUEUED_JOB.id}"}


_CURSOR: Any = Query(
    max_length=64,
    description="The `next` of the page before.",
    json_schema_extra={"pattern": f"^{CURSOR.pattern}$"},  # said there only: a cursor's own message is better
)


class JobList(BaseModel):
    """A page of jobs, the newest first. Codes are not in it: look the job up for them."""

    model_config = ConfigDict(json_schema_extra={"examples": [_PAGE]})

    jobs: list[JobView]
    next: str | None = Field(description="The `cursor` of the next page; null on the last one.")


@router.get(
    "",
    operation_id="list_jobs",
    summary="List one's jobs",
    responses=problems("invalid_request", "queue_unavailable"),
)
async def list_jobs(
    services: ServicesNeeded,
    status: Annotated[JobStatus | None, Query(description="Only jobs in this state.")] = None,
    operation: Annotated[Operation | None, Query(description="Only jobs of this kind.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_JOBS, description="The most on a page.")] = 20,
    cursor: Annotated[str | None, _CURSOR] = None,
) -> JobList:
    """Show the jobs of the request's API key, or all where there are no keys.

    With filters a page may have few jobs, or none, and a `next` all the same.
    """
    page = await services.queue.page(
        current_owner(), status=status, operation=operation, limit=limit, cursor=cursor
    )
    return JobList(jobs=[with_addresses(job, services) for job in page.jobs], next=page.next)


@router.get(
    "/{job_id}",
    operation_id="get_job",
    summary="Look up a job",
    response_class=Response,
    responses=one_job_response(
        200, "The job as it is.", queued=QUEUED_JOB, running=RUNNING_JOB, finished=GENERATED_JOB
    )
    | problems("job_not_found", "queue_unavailable"),
    openapi_extra={"parameters": [PREFER_WAIT]},
)
async def get_job(http: HttpRequest, job_id: JobId, services: ServicesNeeded) -> Response:
    """Show a job. With `Prefer: wait=N`, once it has ended, or N seconds later.

    Only the request that made a job can cancel it by leaving: here `cancel-on-disconnect` is ignored.
    """
    preferences = parse_prefer(http.headers.getlist("prefer"))
    job = await services.queue.get(job_id)
    if preferences.wait_s is None or job.status.is_terminal:
        return await job_response(job, services)
    wait_s = min(preferences.wait_s, services.settings.max_wait_s)
    job = await wait_for(http, job, wait_s, services)
    return await job_response(job, services, headers={"Preference-Applied": f"wait={wait_s:g}"})


@router.delete(
    "/{job_id}",
    operation_id="cancel_job",
    summary="Cancel a job",
    response_class=Response,
    responses=one_job_response(
        200, "The job has ended, by this or before.", cancelled=CANCELLED_JOB, finished=GENERATED_JOB
    )
    | one_job_response(202, "The job ends with its next step.", running=RUNNING_JOB)
    | problems("job_not_found", "queue_unavailable"),
)
async def cancel_job(job_id: JobId, services: ServicesNeeded) -> Response:
    """Cancel a job that waits or runs. One that has ended stays as it is."""
    job = await services.queue.cancel(job_id)
    return await job_response(job, services, 200 if job.status.is_terminal else 202)


@router.post(
    "/{job_id}/retry",
    operation_id="retry_job",
    summary="Try a failed job again",
    response_class=Response,
    responses=job_responses(GENERATED_JOB, has_output=False)
    | problems(*WORK_FAILURES, "job_not_found", "job_not_retryable"),
    openapi_extra={"parameters": [PREFER, IDEMPOTENCY_KEY]},
)
async def retry_job(
    http: HttpRequest,
    job_id: JobId,
    services: ServicesNeeded,
    request: Annotated[RetryRequest | None, Body(openapi_examples=RETRY_EXAMPLES)] = None,
) -> Response:
    """Queue the request of a failed job again, with its seed, as a new job. The failed one stays as it is.

    The body may be left out.
    """
    return await answer_retry(http, job_id, request or RetryRequest(), services)
