"""Batches: many requests in one file, worked on beside interactive ones."""

import asyncio
import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse

from app.batches.intake import Unreadable, check_num_rows
from app.batches.records import BatchRecord, BatchStatus
from app.batches.results import Order, stream_results
from app.batches.telling import views
from app.batches.views import BatchView
from app.errors import InvalidFields
from app.event_stream import HEADERS
from app.examples import ENDED_BATCH, FILE_ID, GENERATED_JOB, NEW_BATCH, RUNNING_BATCH
from app.field_errors import FieldError, field_errors
from app.idempotency import idempotency_of
from app.keys import current_owner, current_viewer
from app.negotiation import JSON_MEDIA_TYPE
from app.openapi import IDEMPOTENCY_KEY, Responses, headers_of, problems
from app.routes.bodies import media_type_of, read_json, takes
from app.routes.places import BatchId
from app.services import Services, ServicesNeeded
from app.sources import SourceFile
from app.webhooks.addresses import check_webhook
from workers.errors import InvalidRequest
from workers.messages import Message, WebhookUrl

router = APIRouter(prefix="/batches", tags=["batches"])

JSON_LINES = ("application/jsonl", "application/x-ndjson")
MAX_BATCHES = 100  # on a page
_LINES = (
    '{"id": "cat-1", "operation": "generate", "body": {"prompt": "a cat", "seed": 1}}\n'
    '{"id": "cat-2", "operation": "generate", "body": {"prompt": "a cat", "seed": 2}}\n'
)
_RESULTS = "".join(
    f"{json.dumps(each)}\n"
    for each in (
        {
            "id": "cat-1",
            "line": 1,
            "seq": 1,
            "status": "succeeded",
            "result": GENERATED_JOB.model_dump(mode="json")["result"],
        },
        {
            "id": "cat-2",
            "line": 2,
            "seq": 2,
            "status": "failed",
            "error": {"code": "invalid_request", "message": "seed: should be a valid integer"},
        },
    )
)
_RESULTS_RESPONSES: Responses = {
    200: {
        "description": "A line for each row that has ended, as JSON; an empty one now and then is a sign of"
        " life.",
        "content": {JSON_LINES[0]: {"schema": {"type": "string"}, "example": _RESULTS}},
    }
}
_FAILURES = (
    "bad_request",
    "unauthorized",
    "forbidden",
    "forbidden_origin",
    "request_timeout",
    "body_too_large",
    "unsupported_media_type",
    "invalid_request",
    "file_not_found",
    "idempotency_key_reused",
    "queue_full",
    "too_busy",
    "storage_full",
    "storage_unavailable",
)


class BatchRequest(Message):
    """What a batch is made of, where its lines don't come with the request."""

    file: str | None = Field(default=None, max_length=64, description="The id of an upload of JSON Lines.")
    webhook_url: WebhookUrl | None = Field(
        default=None, description="Where to POST the batch to when it has ended, signed."
    )


class BatchList(BaseModel):
    """A page of batches, the newest first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"batches": [RUNNING_BATCH.model_dump(mode="json")], "next": RUNNING_BATCH.id}]
        }
    )

    batches: list[BatchView]
    next: str | None = Field(description="The `cursor` of the next page; null on the last one.")


def _one_batch(status: int, description: str, *headers: str, **examples: BatchView) -> Responses:
    values = {name: {"value": example.model_dump(mode="json")} for name, example in examples.items()}
    return {
        status: {
            "model": BatchView,
            "description": description,
            "content": {JSON_MEDIA_TYPE: {"examples": values}},
            "headers": headers_of(*headers),
        }
    }


_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        JSON_MEDIA_TYPE: {
            "schema": {**BatchRequest.model_json_schema(), "required": ["file"]},
            "example": {"file": FILE_ID},
        },
        **{
            media_type: {"schema": {"type": "string", "contentMediaType": media_type}, "example": _LINES}
            for media_type in JSON_LINES
        },
    },
}


@router.post(
    "",
    operation_id="create_batch",
    summary="Send many requests at once",
    dependencies=[Depends(takes(*JSON_LINES, JSON_MEDIA_TYPE))],
    response_class=Response,
    responses=_one_batch(202, "The batch is stored.", "Location", "Idempotency-Replayed", created=NEW_BATCH)
    | _one_batch(200, "An earlier batch, which has ended.", "Idempotency-Replayed", ended=ENDED_BATCH)
    | problems(*_FAILURES),
    openapi_extra={"parameters": [IDEMPOTENCY_KEY], "requestBody": _BODY},
)
async def create_batch(
    http: HttpRequest,
    services: ServicesNeeded,
    webhook_url: Annotated[
        WebhookUrl | None,
        Query(description="Beside lines: where to POST the batch to when it has ended, signed."),
    ] = None,
) -> Response:
    """Store a batch, and answer before its rows are read.

    Each line is one request: its `id`, which no other row has; its `operation`: `generate`, `encode` or
    `decode`; and its `body`, as that address takes it, without `priority` and `webhook_url`. The lines may
    also be an upload: `{"file": ID}` as JSON. There are at most 100,000. A line that is no such request is a
    row that has failed; the others go on.
    """
    if media_type_of(http) == JSON_MEDIA_TYPE:
        request = _read_request(await http.body())
        if webhook_url is not None:
            raise InvalidFields([FieldError(field="webhook_url", message="belongs into the body here")])
        check_webhook(request.webhook_url, services.settings)
        source = None
        await asyncio.to_thread(services.files.use, request.file or "", current_viewer())
    else:
        check_webhook(webhook_url, services.settings)
        request, source = BatchRequest(webhook_url=webhook_url), await http.body()
        try:
            await asyncio.to_thread(check_num_rows, source)
        except Unreadable as error:
            raise InvalidRequest(f"body: {error}") from None
    files = [] if source is None else [SourceFile("body", source)]
    record, is_replay = await asyncio.to_thread(
        services.batches.create,
        current_owner(),
        source,
        file=request.file,
        webhook_url=request.webhook_url,
        idempotency=await idempotency_of(http, request, files),
    )
    services.has_new_batch.set()
    headers = {"Location": f"/batches/{record.id}"}
    if is_replay:
        headers["Idempotency-Replayed"] = "true"
    return await _answer(record, services, headers)


@router.get(
    "", operation_id="list_batches", summary="List one's batches", responses=problems("invalid_request")
)
async def list_batches(
    services: ServicesNeeded,
    status: Annotated[BatchStatus | None, Query(description="Only batches in this state.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_BATCHES, description="The most on a page.")] = 20,
    cursor: Annotated[
        str | None, Query(pattern="^[0-9a-f]{20}$", description="The `next` of the page before.")
    ] = None,
) -> BatchList:
    """Show the batches of the request's API key; all for an administrator, and where there are no keys."""
    records = await asyncio.to_thread(services.batches.all)
    viewer = current_viewer()
    records = [record for record in records if viewer in (None, record.owner)]
    if cursor is not None:
        ids = [record.id for record in records]
        if cursor not in ids:
            raise InvalidRequest(f"cursor: is not the `next` of a page, or that batch has expired: {cursor}")
        records = records[ids.index(cursor) + 1 :]
    records = [record for record in records if status in (None, record.status)]
    return BatchList(
        batches=await views(records[:limit], services),
        next=records[limit - 1].id if len(records) > limit else None,
    )


@router.get(
    "/{batch_id}",
    operation_id="get_batch",
    summary="Look up a batch",
    response_class=Response,
    responses=_one_batch(200, "The batch as it is.", new=NEW_BATCH, running=RUNNING_BATCH, ended=ENDED_BATCH)
    | problems("batch_not_found"),
)
async def get_batch(batch_id: BatchId, services: ServicesNeeded) -> Response:
    """Show a batch, with how many of its rows are in which state."""
    record = await asyncio.to_thread(services.batches.get, batch_id)
    return await _answer(record, services, status=200)


@router.get(
    "/{batch_id}/results",
    operation_id="get_batch_results",
    summary="Fetch the results of a batch",
    response_class=Response,
    responses=_RESULTS_RESPONSES | problems("batch_not_found", "invalid_request"),
)
async def get_batch_results(
    batch_id: BatchId,
    services: ServicesNeeded,
    order: Annotated[
        Order,
        Query(description="ended: as rows ended; input: as they came, up to the first that hasn't ended."),
    ] = "ended",
    after: Annotated[
        int,
        Query(
            ge=0,
            lt=2**53,
            description="Go on after the row with this `seq`; with `order=input`, with this `line`.",
        ),
    ] = 0,
    follow: Annotated[bool, Query(description="Send rows as they end, until the last one.")] = False,
) -> Response:
    """Send the rows that have ended: `id`, `line`, `seq`, `status`, and `result` or `error`.

    A line that is no request has the `id` null where it names none. `seq` counts the rows as they ended.
    """
    stream = stream_results(batch_id, services, order=order, after=after, follows=follow)
    return StreamingResponse(stream, headers=HEADERS, media_type=JSON_LINES[0])


@router.delete(
    "/{batch_id}",
    operation_id="cancel_batch",
    summary="Cancel a batch",
    response_class=Response,
    responses=_one_batch(200, "The batch has ended, by this or before.", ended=ENDED_BATCH)
    | _one_batch(202, "The batch ends when its running rows have.", running=RUNNING_BATCH)
    | problems("batch_not_found", "storage_full", "storage_unavailable"),
)
async def cancel_batch(batch_id: BatchId, services: ServicesNeeded) -> Response:
    """Cancel the rows that have not ended. Results that are there stay; so does a batch that has ended."""
    record = await asyncio.to_thread(services.batches.cancel, batch_id)
    services.has_new_batch.set()
    return await _answer(record, services)


def _read_request(body: bytes) -> BatchRequest:
    """Raises: InvalidFields; InvalidRequest."""
    try:
        request = BatchRequest.model_validate(read_json(body))
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"body: is not JSON: {error.msg} at character {error.pos}") from None
    except ValidationError as error:
        found = field_errors(error.errors(include_url=False), tuple(BatchRequest.model_fields))
        raise InvalidFields(found) from None
    if request.file is None:
        raise InvalidFields([FieldError(field="file", message="is required")])
    return request


async def _answer(
    record: BatchRecord, services: Services, headers: dict[str, str] | None = None, status: int | None = None
) -> Response:
    [view] = await views([record], services)
    status = status or (200 if record.status.is_terminal else 202)
    return Response(view.model_dump_json(), status, headers, media_type=JSON_MEDIA_TYPE)
