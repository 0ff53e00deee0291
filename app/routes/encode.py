"""POST /encode."""

import asyncio
import re
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends
from fastapi.exceptions import RequestValidationError
from pydantic import BeforeValidator, ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from app.errors import InvalidFields
from app.examples import ENCODE_EXAMPLES, ENCODED_JOB
from app.field_errors import FieldError, short
from app.keys import current_viewer
from app.negotiation import JSON_MEDIA_TYPE
from app.openapi import IDEMPOTENCY_KEY, PREFER, WORK_FAILURES, job_responses, problems
from app.routes.bodies import FORM_MEDIA_TYPE, JsonRoute, media_type_of, takes
from app.routes.forms import parsed_form
from app.services import ServicesNeeded
from app.sources import SourceFile, files_of
from app.submit import answer
from workers.messages import MAX_SAMPLES_PER_JOB, EncodeRequest

router = APIRouter(tags=["work"], route_class=JsonRoute)

_FILE_FIELDS = ("source", "file")
_WHOLE_NUMBERS = {
    name
    for name, schema in EncodeRequest.model_json_schema()["properties"].items()
    if schema.get("type") == "integer"
}
_FORM: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        **{
            name: {"type": "string", "format": "binary", "description": description}
            for name, description in (
                ("source", "A PNG, JPEG or WebP file."),
                ("file", "Another name of `source`."),
            )
        },
        **{
            name: schema
            for name, schema in EncodeRequest.model_json_schema()["properties"].items()
            if name not in ("source", "image")
        },
    },
}


def empty_for_a_form(body: Any) -> Any:
    """Return an empty body for the bytes of a form, which FastAPI hands on unread for ``_read_form``."""
    return {} if isinstance(body, bytes) else body


@router.post(
    "/encode",
    operation_id="encode",
    summary="Turn images into codes",
    dependencies=[Depends(takes(JSON_MEDIA_TYPE, FORM_MEDIA_TYPE))],
    response_class=Response,
    responses=job_responses(ENCODED_JOB, has_output=False) | problems(*WORK_FAILURES, "invalid_image"),
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
    """Queue the request. The middle of an image is cut out in the pipeline's shape, and resized."""
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
    async with parsed_form(http, _FILE_FIELDS[0], MAX_SAMPLES_PER_JOB) as form:
        fields: dict[str, str] = {}
        files: list[SourceFile] = []
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                if name in (*_FILE_FIELDS, "image"):
                    raise InvalidFields([FieldError(field=name, message="must be a file in a form")])
                if name in fields:
                    raise InvalidFields([FieldError(field=short(name), message="is there twice; send one")])
                fields[name] = value
            elif name in _FILE_FIELDS:
                field = f"{name}[{len(files)}]" if files else name
                files.append(SourceFile(field, await value.read()))
            else:
                message = f"is not a file's name; send it as {_FILE_FIELDS[0]}"
                raise InvalidFields([FieldError(field=short(name), message=message)])
    for name in _WHOLE_NUMBERS & fields.keys():
        if not re.fullmatch(r"-?[0-9]{1,18}", fields[name]):  # pydantic reads " 2" and "2.0", too
            message = f"should be a valid integer, got {short(fields[name])!r}"
            raise InvalidFields([FieldError(field=name, message=message)])
    try:
        return EncodeRequest.model_validate_strings(fields), files
    except ValidationError as error:
        found = [{**each, "loc": ("body", *each["loc"])} for each in error.errors(include_url=False)]
        raise RequestValidationError(found) from None
