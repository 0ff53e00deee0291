"""POST /decode."""

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from app.answers import answer
from app.bodies import MAX_DECODE_BYTES, json_body, request_body
from app.openapi import (
    DECODE_EXAMPLES,
    DECODED_JOB,
    PREFER,
    WORK_FAILURES,
    job_responses,
    problems,
)
from app.services import ServicesNeeded
from workers.messages import DecodeRequest

router = APIRouter(tags=["work"])


@router.post(
    "/decode",
    operation_id="decode",
    summary="Turn codes into images",
    responses=job_responses(DECODED_JOB, has_image=True) | problems(*WORK_FAILURES, "invalid_codes"),
    openapi_extra=request_body(DecodeRequest, DECODE_EXAMPLES) | {"parameters": [PREFER]},
)
async def decode(
    http: HttpRequest,
    request: Annotated[DecodeRequest, Depends(json_body(DecodeRequest, MAX_DECODE_BYTES))],
    services: ServicesNeeded,
) -> Response:
    """Queue the request. Codes of another tokenizer than the pipeline's are refused."""
    return await answer(http, request, services)
