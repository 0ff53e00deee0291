"""POST /generate."""

import asyncio
import base64
from typing import Annotated

from fastapi import APIRouter, Body, Depends
from pydantic import BeforeValidator
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from app.errors import InvalidFields
from app.examples import GENERATE_EXAMPLES, GENERATED_JOB
from app.field_errors import FieldError
from app.keys import current_viewer
from app.negotiation import JSON_MEDIA_TYPE
from app.openapi import IDEMPOTENCY_KEY, PREFER, WORK_FAILURES, job_responses, problems
from app.routes.bodies import FORM_MEDIA_TYPE, JsonRoute, media_type_of, takes
from app.routes.forms import empty_for_a_form, form_schema, read_fields, request_from
from app.services import ServicesNeeded
from app.sources import files_of
from app.submit import answer
from workers.messages import EDIT_ROLES, GenerateRequest

router = APIRouter(tags=["work"], route_class=JsonRoute)

_FORM = form_schema(
    GenerateRequest,
    {"source": "A picture to start from.", "mask": "Where it is drawn anew: white there, else black."},
    without=("labels",),
)


@router.post(
    "/generate",
    operation_id="generate",
    summary="Generate images of a class or a prompt, or edit one",
    dependencies=[Depends(takes(JSON_MEDIA_TYPE, FORM_MEDIA_TYPE))],
    response_class=Response,
    responses=job_responses(GENERATED_JOB, has_output=True) | problems(*WORK_FAILURES, "invalid_image"),
    openapi_extra={
        "parameters": [PREFER, IDEMPOTENCY_KEY],
        "requestBody": {"content": {FORM_MEDIA_TYPE: {"schema": _FORM}}},
    },
)
async def generate(
    http: HttpRequest,
    request: Annotated[
        GenerateRequest, BeforeValidator(empty_for_a_form), Body(openapi_examples=GENERATE_EXAMPLES)
    ],
    services: ServicesNeeded,
) -> Response:
    """Queue the request. Without a seed one is drawn, and told in the result."""
    if media_type_of(http) == FORM_MEDIA_TYPE:
        request = await _read_form(http)
    files = await asyncio.to_thread(files_of, request, services.files, current_viewer())
    return await answer(http, request, services, files)


async def _read_form(http: HttpRequest) -> GenerateRequest:
    """Return the request that a form makes, with its files in it.

    Raises: RequestValidationError; InvalidFields.
    """
    fields, parts = await read_fields(http, EDIT_ROLES, len(EDIT_ROLES))
    if "labels" in fields:
        message = "a form has none; send class_label, style or group, or JSON"
        raise InvalidFields([FieldError(field="labels", message=message)])
    for name, data in parts:
        if name in fields:
            raise InvalidFields([FieldError(field=name, message="is there twice; send one")])
        fields[name] = base64.b64encode(data).decode()
    return request_from(GenerateRequest, fields)
