"""Jobs: look up, wait for, cancel."""

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from app.examples import CANCELLED_JOB, GENERATED_JOB, QUEUED_JOB, RUNNING_JOB
from app.negotiation import parse_prefer
from app.openapi import PREFER_WAIT, one_job_response, problems
from app.routes.places import JobId
from app.services import ServicesNeeded
from app.submit import job_response, wait_for

router = APIRouter(prefix="/jobs", tags=["jobs"])


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
