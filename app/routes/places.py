"""The parts of an address, checked in one place: which job, and which of its outputs."""

import re
from typing import Annotated

from fastapi import Depends, Path
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticKnownError

from app.examples import QUEUED_JOB
from app.keys import current_key
from app.services import ServicesNeeded
from workers.errors import JobNotFound

_JOB_ID = re.compile(r"[0-9a-f]{32}")
_MAX_INDEX_DIGITS = 9


async def _known_form(
    job_id: Annotated[str, Path(description="32 hexadecimal digits.", examples=[QUEUED_JOB.id])],
) -> str:
    """Return the id of a job; one of another form is none, and isn't looked up.

    Raises: JobNotFound.
    """
    if not _JOB_ID.fullmatch(job_id):
        raise JobNotFound(f"there is no job {job_id[:64]!r}: an id is 32 hexadecimal digits")
    return job_id


def _read_index(text: object) -> object:
    """Return the text of a whole number as it is.

    Raises: JobNotFound for one that is longer than any job's; PydanticKnownError for what is no number.
    """
    if not re.fullmatch(r"-?[0-9]+", str(text)):
        raise PydanticKnownError("int_parsing")
    if len(str(text)) > _MAX_INDEX_DIGITS:
        raise JobNotFound(f"no job has an output {str(text)[:_MAX_INDEX_DIGITS]}…")
    return text


async def _visible(job_id: Annotated[str, Depends(_known_form)], services: ServicesNeeded) -> str:
    """Return the id of a job that the request's key may see: its own, or any for an administrator.

    Raises: JobNotFound.
    """
    key = current_key.get()
    if key is not None and not key.may("admin") and await services.queue.owner(job_id) != key.name:
        raise JobNotFound(f"there is no job {job_id}, or its result has expired")
    return job_id


JobId = Annotated[str, Depends(_visible)]
Index = Annotated[int, Field(ge=0), BeforeValidator(_read_index), Path(description="From 0.", examples=[0])]
