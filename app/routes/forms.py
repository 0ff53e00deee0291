"""Forms: read within bounds, and refused in words for their client."""

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest

from app.errors import InvalidFields
from app.field_errors import FieldError, short
from workers.errors import InvalidRequest

Kind = TypeVar("Kind", bound=BaseModel)

_MAX_FIELDS = 16
_MAX_FIELD_BYTES = 4096


async def read_fields(
    http: HttpRequest, file_fields: Sequence[str], max_files: int, other_files: Sequence[str] = ()
) -> tuple[dict[str, str], list[tuple[str, bytes]]]:
    """Return the fields of a form, and its files with their names.

    other_files: names of the JSON's fields for files that a form may not have, not even as text.

    Raises: InvalidFields; as ``parsed_form``.
    """
    async with parsed_form(http, file_fields[0], max_files) as form:
        fields: dict[str, str] = {}
        files: list[tuple[str, bytes]] = []
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                if name in (*file_fields, *other_files):
                    raise InvalidFields([FieldError(field=name, message="must be a file in a form")])
                if name in fields:
                    raise InvalidFields([FieldError(field=short(name), message="is there twice; send one")])
                fields[name] = value
            elif name in file_fields:
                files.append((name, await value.read()))
            else:
                message = f"is not a file's name; send it as {file_fields[0]}"
                raise InvalidFields([FieldError(field=short(name), message=message)])
    return fields, files


def request_from(kind: type[Kind], fields: Mapping[str, str]) -> Kind:
    """Return the request that the fields of a form make.

    Raises: InvalidFields; RequestValidationError.
    """
    for name in whole_numbers(kind) & fields.keys():
        if not re.fullmatch(r"-?[0-9]{1,18}", fields[name]):  # pydantic reads " 2" and "2.0", too
            message = f"should be a valid integer, got {short(fields[name])!r}"
            raise InvalidFields([FieldError(field=name, message=message)])
    try:
        return kind.model_validate_strings(fields)
    except ValidationError as error:
        found = [{**each, "loc": ("body", *each["loc"])} for each in error.errors(include_url=False)]
        raise RequestValidationError(found) from None


@cache
def whole_numbers(kind: type[BaseModel]) -> frozenset[str]:
    """Return the fields of a request that are whole numbers, if anything."""
    properties = kind.model_json_schema()["properties"]
    return frozenset(
        name
        for name, schema in properties.items()
        if "integer" in [each.get("type") for each in schema.get("anyOf", [schema])]
        and "string" not in [each.get("type") for each in schema.get("anyOf", ())]
    )


def form_schema(kind: type[BaseModel], files: Mapping[str, str], without: Sequence[str]) -> dict[str, Any]:
    """Return the schema of a form: files with their descriptions, and a request's fields."""
    properties = kind.model_json_schema(ref_template="#/components/schemas/{model}")["properties"]
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            **{
                name: {"type": "string", "format": "binary", "description": description}
                for name, description in files.items()
            },
            **{name: schema for name, schema in properties.items() if name not in (*files, *without)},
        },
    }


def empty_for_a_form(body: Any) -> Any:
    """Return an empty body for the bytes of a form, which FastAPI hands on unread."""
    return {} if isinstance(body, bytes) else body


@asynccontextmanager
async def parsed_form(http: HttpRequest, file_field: str, max_files: int) -> AsyncIterator[FormData]:
    """Yield a form. file_field: what an error calls its files.

    Raises: InvalidRequest where it has too much; HTTPException where it can't be read.
    """
    too_long = f"body: a field of a form is at most {_MAX_FIELD_BYTES} bytes, got more"
    limits = {  # how a complaint of the parser begins → ours
        "Too many files": f"{file_field}: at most {max_files} file{'s'[: max_files - 1]}, got more",
        "Too many fields": f"body: a form has at most {_MAX_FIELDS} fields beside its files, got more",
        "Part exceeded": too_long,
        "Field exceeded": too_long,
    }
    reader = http.form(max_files=max_files, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES)
    try:
        form = await reader
    except HTTPException as error:
        told = [ours for theirs, ours in limits.items() if str(error.detail).startswith(theirs)]
        raise (InvalidRequest(told[0]) if told else error) from None
    try:
        yield form
    finally:
        await form.close()
