"""OpenAI's Batch API for pictures, for its unmodified clients: our batches, with the same ids."""

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Body, Depends, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request as HttpRequest

from app.errors import InvalidFields
from app.examples import FILE_ID, NEW_BATCH
from app.field_errors import FieldError
from app.files import FileNotKnown
from app.idempotency import idempotency_of
from app.keys import current_owner, current_viewer
from app.openai_batch_input import ENDPOINT, BatchInput, read_input
from app.openai_batches import (
    BatchNotes,
    BatchObject,
    BatchObjects,
    Metadata,
    NotesStore,
    RequestCounts,
    batch_object,
)
from app.openai_examples import openai_failures
from app.openapi import IDEMPOTENCY_KEY
from app.routes.bodies import JsonRoute, takes_json
from app.routes.openai_files import shown
from app.routes.places import BatchId
from app.services import Services, ServicesNeeded

router = APIRouter(prefix="/v1/batches", tags=["openai"], route_class=JsonRoute)

MAX_BATCHES = 100  # on a page
_NO_BATCH = (404, "batch_not_found", f"there is no batch {NEW_BATCH.id!r}, or it has expired", None)
_ENDPOINT = (400, "invalid_request", f"endpoint: should be '{ENDPOINT}', got '/v1/embeddings'", "endpoint")
_BATCH = BatchObject(
    id=NEW_BATCH.id,
    input_file_id=FILE_ID,
    completion_window="24h",
    status="validating",
    created_at=1767323045,
    request_counts=RequestCounts(total=0, completed=0, failed=0),
)
_BATCHES = BatchObjects(data=[_BATCH], first_id=_BATCH.id, last_id=_BATCH.id, has_more=False)


class BatchCreate(BaseModel):
    """A request as OpenAI's clients send it."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"input_file_id": FILE_ID, "endpoint": ENDPOINT, "completion_window": "24h"}]
        },
    )

    input_file_id: Annotated[str, Field(max_length=64)] = Field(description="Of /v1/files.")
    endpoint: Literal["/v1/images/generations"]
    completion_window: Literal["24h"] = Field(description="Without effect: a batch takes what it takes.")
    metadata: Metadata | None = None


@router.post(
    "",
    operation_id="openai_create_batch",
    summary="Make a batch, as OpenAI's clients do",
    dependencies=[Depends(takes_json)],
    responses=shown(_BATCH)
    | openai_failures(
        _ENDPOINT,
        (415, "unsupported_media_type", "Content-Type: send application/json, got text/plain", None),
        (429, "queue_full", "100 batches have not ended, which is the most that may", None),
    ),
    openapi_extra={"parameters": [IDEMPOTENCY_KEY]},
)
async def create_batch(
    http: HttpRequest, request: Annotated[BatchCreate, Body()], services: ServicesNeeded
) -> BatchObject:
    """Make a batch of a file of requests for pictures.

    A line that is no such request ends the batch before it is begun, as OpenAI has it, and `errors` says so;
    a request with a wrong field fails alone, and is told in the error file.
    """
    async with services.long_reads:
        read = await asyncio.to_thread(_read, request.input_file_id, services)
        notes = BatchNotes(
            input_file_id=request.input_file_id,
            completion_window=request.completion_window,
            metadata=request.metadata,
            errors=read.errors,
            failures=read.failures,
        )
        idempotency = await idempotency_of(http, request, ())
        record, is_replay = await asyncio.to_thread(
            services.batches.create,
            current_owner(),
            read.rows,
            idempotency=idempotency,
            prepare=lambda batch_id: _notes(services).put(batch_id, notes),
        )
        if idempotency is not None and not is_replay:  # another body with this key may have come between
            await asyncio.to_thread(_notes(services).put, record.id, notes)
    services.has_new_batch.set()
    return batch_object(record, notes)


@router.get(
    "",
    operation_id="openai_list_batches",
    summary="List one's batches, as OpenAI's clients do",
    responses=shown(_BATCHES)
    | openai_failures(
        (400, "invalid_request", "limit: should be greater than or equal to 1, got '0'", "limit")
    ),
)
async def list_batches(
    services: ServicesNeeded,
    limit: Annotated[int, Query(ge=1, le=MAX_BATCHES, description="The most on a page.")] = 20,
    after: Annotated[
        str | None, Query(pattern="^[0-9a-f]{20}$", description="The id before the first one.")
    ] = None,
) -> BatchObjects:
    """Show the batches of the request's API key that were made here, the newest first."""
    found, has_more = await asyncio.to_thread(_page, services, limit, after, current_viewer())
    return BatchObjects(
        data=found,
        first_id=found[0].id if found else None,
        last_id=found[-1].id if found else None,
        has_more=has_more,
    )


@router.get(
    "/{batch_id}",
    operation_id="openai_get_batch",
    summary="Look up a batch, as OpenAI's clients do",
    responses=shown(_BATCH) | openai_failures(_NO_BATCH),
)
async def get_batch(batch_id: BatchId, services: ServicesNeeded) -> BatchObject:
    """Show a batch, with the ids of its output files once it has ended."""
    return await asyncio.to_thread(_looked_up, batch_id, services)


@router.post(
    "/{batch_id}/cancel",
    operation_id="openai_cancel_batch",
    summary="Cancel a batch, as OpenAI's clients do",
    responses=shown(_BATCH) | openai_failures(_NO_BATCH),
)
async def cancel_batch(batch_id: BatchId, services: ServicesNeeded) -> BatchObject:
    """Cancel the requests that have not ended. A batch that has ended stays as it is."""
    notes = await asyncio.to_thread(_notes(services).get, batch_id)
    record = await asyncio.to_thread(services.batches.cancel, batch_id)
    services.has_new_batch.set()
    return batch_object(record, notes)


def _notes(services: Services) -> NotesStore:
    return NotesStore(services.settings.openai_batches_dir)


def _read(file_id: str, services: Services) -> BatchInput:
    """Raises: InvalidFields."""
    try:
        upload = services.files.use(file_id, current_viewer())
        with upload.open() as lines:
            return read_input(lines, services.catalog)
    except FileNotKnown as error:
        raise InvalidFields([FieldError(field="input_file_id", message=str(error))]) from None


def _looked_up(batch_id: str, services: Services) -> BatchObject:
    """Raises: BatchNotFound."""
    return batch_object(services.batches.get(batch_id), _notes(services).get(batch_id))


def _page(
    services: Services, limit: int, after: str | None, viewer: str | None
) -> tuple[list[BatchObject], bool]:
    notes = _notes(services)
    records = [each for each in services.batches.all() if viewer in (None, each.owner) and notes.has(each.id)]
    if after is not None:
        ids = [record.id for record in records]
        if after not in ids:
            raise InvalidFields([FieldError(field="after", message="is the id of no batch that is there")])
        records = records[ids.index(after) + 1 :]
    return [batch_object(each, notes.get(each.id)) for each in records[:limit]], len(records) > limit
