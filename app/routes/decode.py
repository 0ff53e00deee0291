"""POST /decode."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends
from fastapi.exceptions import RequestValidationError
from pydantic import BeforeValidator, ValidationError
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from app.codes import codes_of_answer
from app.errors import InvalidFields
from app.examples import DECODE_EXAMPLES, DECODED_JOB
from app.field_errors import FieldError, short
from app.keys import current_viewer
from app.latents import find_latents
from app.negotiation import JSON_MEDIA_TYPE
from app.openapi import IDEMPOTENCY_KEY, PREFER, WORK_FAILURES, array_content, job_responses, problems
from app.routes.bodies import JsonRoute, media_type_of, takes
from app.services import ServicesNeeded
from app.sources import SourceFile
from app.submit import answer
from workers.arrays import NPY_MEDIA_TYPE
from workers.messages import DecodeRequest, JobReference

router = APIRouter(tags=["work"], route_class=JsonRoute)

_BODY_ITSELF = JobReference(job="")  # what the body of a request is that has latents instead of JSON
_QUERY = {
    name: schema
    for name, schema in DecodeRequest.model_json_schema()["properties"].items()
    if name not in ("codes", "latents")
}
_PARAMETERS = [
    {
        "name": name,
        "in": "query",
        "required": False,
        "schema": {"type": "string"},
        "description": f"Where the body is a NumPy file, what `{name}` is in JSON.",
    }
    for name in _QUERY
]


def _read_body(body: Any) -> Any:
    """Return an empty body for the bytes of a NumPy file, which FastAPI hands on unread."""
    return {} if isinstance(body, bytes) else codes_of_answer(body)


@router.post(
    "/decode",
    operation_id="decode",
    summary="Turn codes or latents into images",
    dependencies=[Depends(takes(JSON_MEDIA_TYPE, NPY_MEDIA_TYPE))],
    response_class=Response,
    responses=job_responses(DECODED_JOB, has_output=True)
    | problems(*WORK_FAILURES, "invalid_codes", "invalid_latents"),
    openapi_extra={
        "parameters": [PREFER, IDEMPOTENCY_KEY, *_PARAMETERS],
        "requestBody": {"content": array_content()},
    },
)
async def decode(
    http: HttpRequest,
    request: Annotated[DecodeRequest, BeforeValidator(_read_body), Body(openapi_examples=DECODE_EXAMPLES)],
    services: ServicesNeeded,
) -> Response:
    """Queue the request. Codes or latents of another tokenizer than the pipeline's are refused.

    The body may also be a job as /encode answered it, or its `result`; or a NumPy file of latents.
    """
    if media_type_of(http) == NPY_MEDIA_TYPE:
        request, files = _request_of_query(http), [SourceFile("latents", await http.body())]
    else:
        request, files = await find_latents(request, services, current_viewer())
    return await answer(http, request, services, files)


def _request_of_query(http: HttpRequest) -> DecodeRequest:
    """Return the fields that stand beside a NumPy file.

    Raises: RequestValidationError; InvalidFields.
    """
    fields: dict[str, Any] = {}
    for name, value in http.query_params.multi_items():
        if name in fields:
            raise InvalidFields([FieldError(field=short(name), message="is there twice; send one")])
        if name in ("codes", "latents"):
            raise InvalidFields([FieldError(field=name, message="is the body itself; leave it out")])
        fields[name] = value
    try:
        read = DecodeRequest.model_validate_strings(fields)
    except ValidationError as error:
        found = [{**each, "loc": ("body", *each["loc"])} for each in error.errors(include_url=False)]
        raise RequestValidationError(found) from None
    return read.model_copy(update={"latents": _BODY_ITSELF})
