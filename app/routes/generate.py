"""POST /generate."""

from typing import Annotated

from fastapi import APIRouter, Body, Depends
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from app.examples import GENERATE_EXAMPLES, GENERATED_JOB
from app.openapi import IDEMPOTENCY_KEY, PREFER, WORK_FAILURES, job_responses, problems
from app.routes.bodies import JsonRoute, takes_json
from app.services import ServicesNeeded
from app.submit import answer
from workers.messages import GenerateRequest

router = APIRouter(tags=["work"], route_class=JsonRoute)


@router.post(
    "/generate",
    operation_id="generate",
    summary="Generate images of a class or a prompt",
    dependencies=[Depends(takes_json)],
    response_class=Response,
    responses=job_responses(GENERATED_JOB, has_output=True) | problems(*WORK_FAILURES),
    openapi_extra={"parameters": [PREFER, IDEMPOTENCY_KEY]},
)
async def generate(
    http: HttpRequest,
    request: Annotated[GenerateRequest, Body(openapi_examples=GENERATE_EXAMPLES)],
    services: ServicesNeeded,
) -> Response:
    """Queue the request. Without a seed one is drawn, and told in the result."""
    return await answer(http, request, services)
