"""Forms: read within bounds, and refused in words for their client."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest

from workers.errors import InvalidRequest

_MAX_FIELDS = 16
_MAX_FIELD_BYTES = 4096


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
