"""The parts of an address, checked in one place: which job, and which of its outputs."""

import asyncio
import re
from typing import Annotated

from fastapi import Depends, Path
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticKnownError

from app.batches.store import BatchNotFound
from app.examples import NEW_BATCH, QUEUED_JOB
from app.keys import current_viewer
from app.services import ServicesNeeded
from workers.errors import JobNotFound
from workers.results import JOB_ID

_MAX_INDEX_DIGITS = 9


async def _known_form(
    job_id: Annotated[str, Path(description="32 hexadecimal digits.", examples=[QUEUED_JOB.id])],
) -> str:
    """Return the id of a job; one of another form is none, and isn't looked up.

    Raises: JobNotFound.
    """
    if not JOB_ID.fullmatch(job_id):
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
    viewer = current_viewer()
    if viewer is None:
        return job_id
    owner = await services.queue.owner(job_id)
    if not owner:  # outputs of a batch's rows outlive their jobs
        owner = await asyncio.to_thread(services.batches.owner_of_job, job_id)
    if owner != viewer:
        raise JobNotFound(f"there is no job {job_id}, or its result has expired")
    return job_id


async def _visible_batch(
    batch_id: Annotated[str, Path(description="20 hexadecimal digits.", examples=[NEW_BATCH.id])],
    services: ServicesNeeded,
) -> str:
    """Return the id of a batch that the request's key may see: its own, or any for an administrator.

    Raises: BatchNotFound.
    """
    record = await asyncio.to_thread(services.batches.get, batch_id)
    if current_viewer() not in (None, record.owner):
        raise BatchNotFound(batch_id)
    return batch_id


JobId = Annotated[str, Depends(_visible)]
BatchId = Annotated[str, Depends(_visible_batch)]
Index = Annotated[int, Field(ge=0), BeforeValidator(_read_index), Path(description="From 0.", examples=[0])]
