"""POST /encode."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Body, Depends
from pydantic import BeforeValidator
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from app.errors import InvalidFields
from app.examples import ENCODE_EXAMPLES, ENCODED_JOB
from app.field_errors import FieldError
from app.keys import current_viewer
from app.negotiation import JSON_MEDIA_TYPE
from app.openapi import IDEMPOTENCY_KEY, PREFER, WORK_FAILURES, job_responses, problems
from app.routes.bodies import FORM_MEDIA_TYPE, JsonRoute, media_type_of, takes
from app.routes.forms import empty_for_a_form, form_schema, read_fields, request_from
from app.services import ServicesNeeded
from app.sources import SourceFile, files_of
from app.submit import answer
from workers.messages import MAX_SAMPLES_PER_JOB, EncodeRequest

router = APIRouter(tags=["work"], route_class=JsonRoute)

_FORM = form_schema(
    EncodeRequest,
    {"source": "A PNG, JPEG or WebP file.", "file": "Another name of `source`."},
    without=("image",),
)


@router.post(
    "/encode",
    operation_id="encode",
    summary="Turn images into codes or latents",
    dependencies=[Depends(takes(JSON_MEDIA_TYPE, FORM_MEDIA_TYPE))],
    response_class=Response,
    responses=job_responses(ENCODED_JOB, has_output=False, has_array=True)
    | problems(*WORK_FAILURES, "invalid_image"),
    openapi_extra={
        "parameters": [PREFER, IDEMPOTENCY_KEY],
        "requestBody": {"content": {FORM_MEDIA_TYPE: {"schema": _FORM}}},
    },
)
async def encode(
    http: HttpRequest,
    request: Annotated[
        EncodeRequest, BeforeValidator(empty_for_a_form), Body(openapi_examples=ENCODE_EXAMPLES)
    ],
    services: ServicesNeeded,
) -> Response:
    """Queue the request. The middle of an image is cut out in the pipeline's shape, and resized.

    With `Accept: application/x-npy` the codes or latents of all samples come as one NumPy file.
    """
    if media_type_of(http) == FORM_MEDIA_TYPE:
        request, files = await _read_form(http)
    else:
        files = await asyncio.to_thread(files_of, request, services.files, current_viewer())
    if request.image is not None and request.source is not None:
        raise InvalidFields([FieldError(field="image", message="is the older name of source; send one")])
    if not files:
        raise InvalidFields([FieldError(field="source", message="is required")])
    return await answer(http, request, services, files)


async def _read_form(http: HttpRequest) -> tuple[EncodeRequest, list[SourceFile]]:
    """Return the fields of a form and its files.

    Raises: RequestValidationError; InvalidFields.
    """
    fields, parts = await read_fields(http, ("source", "file"), MAX_SAMPLES_PER_JOB, ("image",))
    files = [
        SourceFile(f"{name}[{number}]" if number else name, data, role="signal")
        for number, (name, data) in enumerate(parts)
    ]
    return request_from(EncodeRequest, fields), files
