"""Request bodies, bounded while they arrive, read into the request types."""

import base64
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request as HttpRequest
from starlette.types import Message, Receive

from app.errors import BodyTooLarge, FieldError, InvalidFields, UnsupportedMediaType, field_errors
from app.negotiation import JSON_MEDIA_TYPE
from app.openapi import schema_content
from workers.errors import InvalidImage
from workers.images import MAX_IMAGE_BYTES
from workers.messages import (
    MAX_IMAGE_BASE64_CHARS,
    DecodeRequest,
    EncodeRequest,
    GenerateRequest,
)

MULTIPART_MEDIA_TYPE = "multipart/form-data"
MAX_GENERATE_BYTES = 64 * 2**10
MAX_DECODE_BYTES = 4 * 2**20
MAX_ENCODE_BYTES = MAX_IMAGE_BASE64_CHARS + 64 * 2**10

_MAX_FORM_FIELDS = 16
_MAX_FORM_FIELD_BYTES = 4096

Body = TypeVar("Body", GenerateRequest, EncodeRequest, DecodeRequest)


def json_body(kind: type[Body], max_bytes: int) -> Callable[[HttpRequest], Awaitable[Body]]:
    """Return a dependency that reads a JSON body of this type.

    It raises: UnsupportedMediaType, BodyTooLarge, or InvalidFields.
    """

    async def read_body(request: HttpRequest) -> Body:
        _check_media_type(request, (JSON_MEDIA_TYPE,))
        return _validate_json(kind, await _read(request, max_bytes))

    return read_body


async def encode_body(request: HttpRequest) -> EncodeRequest:
    """Read the body of /encode: JSON with the image in base64, or a form with the image as its `file`."""
    media_type = _check_media_type(request, (JSON_MEDIA_TYPE, MULTIPART_MEDIA_TYPE))
    body = await _read(request, MAX_ENCODE_BYTES)
    if media_type == JSON_MEDIA_TYPE:
        return _validate_json(EncodeRequest, body)
    return await _parse_form(HttpRequest(request.scope, _replay(body)))


def request_body(
    kind: type[Body], examples: Mapping[str, Body], *, form: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Describe a body for OpenAPI, which can't see it in the signature."""
    content: dict[str, Any] = {JSON_MEDIA_TYPE: schema_content(kind, examples)}
    if form is not None:
        content[MULTIPART_MEDIA_TYPE] = {"schema": form}
    return {"requestBody": {"required": True, "content": content}}


async def _parse_form(request: HttpRequest) -> EncodeRequest:
    async with request.form(
        max_files=1, max_fields=_MAX_FORM_FIELDS, max_part_size=_MAX_FORM_FIELD_BYTES
    ) as form:
        fields: dict[str, object] = {name: value for name, value in form.multi_items() if name != "file"}
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise InvalidFields([FieldError(field="file", message="is required, as a file")])
        if "image" in fields:
            raise InvalidFields([FieldError(field="image", message="unknown field; a form has `file`")])
        data = await file.read()
    if len(data) > MAX_IMAGE_BYTES:
        raise InvalidImage(f"file: at most {MAX_IMAGE_BYTES} bytes, got {len(data)}")
    if not data:
        raise InvalidImage("file: is empty")
    try:
        return EncodeRequest.model_validate({**fields, "image": base64.b64encode(data).decode()})
    except ValidationError as error:
        raise _invalid(EncodeRequest, error) from None


def _validate_json(kind: type[Body], body: bytes) -> Body:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _invalid(kind, error) from None


def _invalid(kind: type[Body], error: ValidationError) -> InvalidFields:
    return InvalidFields(field_errors(error.errors(include_url=False), tuple(kind.model_fields)))


def _check_media_type(request: HttpRequest, taken: tuple[str, ...]) -> str:
    got = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if got not in taken:
        raise UnsupportedMediaType(f"Content-Type: send {' or '.join(taken)}, got {got[:60] or 'none'}")
    return got


async def _read(request: HttpRequest, max_bytes: int) -> bytes:
    """Read a body, but no more than this of it.

    Raises: BodyTooLarge, before anything is read where the client says how much it sends.
    """
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise BodyTooLarge(f"the body is at most {max_bytes} bytes, got {int(length)}")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise BodyTooLarge(f"the body is at most {max_bytes} bytes, got more")
    return bytes(body)


def _replay(body: bytes) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
