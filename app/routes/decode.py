"""POST /decode."""

from typing import Annotated

from fastapi import APIRouter, Body, Depends
from pydantic import BeforeValidator
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from app.codes import codes_of_answer
from app.examples import DECODE_EXAMPLES, DECODED_JOB
from app.openapi import IDEMPOTENCY_KEY, PREFER, WORK_FAILURES, job_responses, problems
from app.routes.bodies import JsonRoute, takes_json
from app.services import ServicesNeeded
from app.submit import answer
from workers.messages import DecodeRequest

router = APIRouter(tags=["work"], route_class=JsonRoute)


@router.post(
    "/decode",
    operation_id="decode",
    summary="Turn codes into images",
    dependencies=[Depends(takes_json)],
    response_class=Response,
    responses=job_responses(DECODED_JOB, has_output=True) | problems(*WORK_FAILURES, "invalid_codes"),
    openapi_extra={"parameters": [PREFER, IDEMPOTENCY_KEY]},
)
async def decode(
    http: HttpRequest,
    request: Annotated[
        DecodeRequest, BeforeValidator(codes_of_answer), Body(openapi_examples=DECODE_EXAMPLES)
    ],
    services: ServicesNeeded,
) -> Response:
    """Queue the request. Codes of another tokenizer than the pipeline's are refused.

    The body may also be a job as /encode answered it, or its `result`.
    """
    return await answer(http, request, services)
