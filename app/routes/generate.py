"""POST /generate."""

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from app.answers import answer
from app.bodies import MAX_GENERATE_BYTES, json_body, request_body
from app.openapi import (
    GENERATE_EXAMPLES,
    GENERATED_JOB,
    PREFER,
    WORK_FAILURES,
    job_responses,
    problems,
)
from app.services import ServicesNeeded
from workers.messages import GenerateRequest

router = APIRouter(tags=["work"])


@router.post(
    "/generate",
    operation_id="generate",
    summary="Generate images of a class or a prompt",
    responses=job_responses(GENERATED_JOB, has_image=True) | problems(*WORK_FAILURES),
    openapi_extra=request_body(GenerateRequest, GENERATE_EXAMPLES) | {"parameters": [PREFER]},
)
async def generate(
    http: HttpRequest,
    request: Annotated[GenerateRequest, Depends(json_body(GenerateRequest, MAX_GENERATE_BYTES))],
    services: ServicesNeeded,
) -> Response:
    """Queue the request. Without a seed one is drawn, and told in the result."""
    return await answer(http, request, services)
