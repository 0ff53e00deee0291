"""OpenAI's Files API, as far as its Batch API needs it, for its unmodified clients."""

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse

from app.batches.records import BatchRecord
from app.batches.store import BatchNotFound
from app.errors import InvalidFields
from app.examples import FILE_ID
from app.field_errors import FieldError, short
from app.files import FileNotKnown, Upload
from app.keys import current_owner, current_viewer
from app.negotiation import JSON_MEDIA_TYPE
from app.openai_batches import OUTPUT_ID, BatchNotes, NotesStore, OutputKind, output_lines
from app.openai_examples import openai_failures
from app.openapi import Responses
from app.routes.bodies import FORM_MEDIA_TYPE, takes
from app.routes.files import content_response, store_upload
from app.routes.forms import parsed_form
from app.services import Services, ServicesNeeded

router = APIRouter(prefix="/v1/files", tags=["openai"])

MAX_FILES = 10_000  # of a list, which is all that a key may have
PURPOSE = "batch"

Order = Literal["asc", "desc"]


class FileObject(BaseModel):
    """A file, as OpenAI describes one."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = Field(default=None, description="Later with each use.")
    filename: str
    purpose: Literal["batch", "batch_output"] = "batch"
    status: Literal["processed"] = "processed"


class FileObjects(BaseModel):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    """A file that is there no more."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


FILE = FileObject(
    id=FILE_ID, bytes=604, created_at=1767323045, expires_at=1767409445, filename="requests.jsonl"
)
_FILES = FileObjects(data=[FILE], first_id=FILE.id, last_id=FILE.id, has_more=False)
_NO_FILE = (
    404,
    "file_not_found",
    f"there is no file '{FILE_ID}', or it has expired; send it with POST /files and use the id in the answer",
    None,
)
_PURPOSE = (400, "invalid_request", "purpose: must be 'batch', got 'assistants'", "purpose")
_NO_FORM = (415, "unsupported_media_type", "Content-Type: send multipart/form-data, got none", None)
_LIMIT = (400, "invalid_request", f"limit: should be less than or equal to {MAX_FILES}, got 10001", "limit")
_FORM: dict[str, Any] = {
    "type": "object",
    "required": ["file", "purpose"],
    "additionalProperties": False,
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "The file, with a name."},
        "purpose": {"type": "string", "enum": [PURPOSE]},
    },
}

_BYTES: Responses = {
    200: {
        "description": "The bytes.",
        "content": {"*/*": {"schema": {"type": "string", "format": "binary"}, "example": ""}},
    }
}

FileId = Annotated[str, Path(description="32 hexadecimal digits.", examples=[FILE_ID])]


def shown(example: BaseModel) -> Responses:
    """Describe an answer by an example of it."""
    return {200: {"content": {JSON_MEDIA_TYPE: {"example": example.model_dump(mode="json")}}}}


@router.post(
    "",
    operation_id="openai_create_file",
    summary="Send a file, as OpenAI's clients do",
    dependencies=[Depends(takes(FORM_MEDIA_TYPE))],
    responses=shown(FILE) | openai_failures(_PURPOSE, _NO_FORM),
    openapi_extra={"requestBody": {"required": True, "content": {FORM_MEDIA_TYPE: {"schema": _FORM}}}},
)
async def create_file(http: HttpRequest, services: ServicesNeeded) -> FileObject:
    """Keep a file for a batch. It is an upload as `POST /files` makes it, with the same id."""
    file: UploadFile | None = None
    purpose: object = None
    async with parsed_form(http, "file", max_files=1) as form:
        for name, value in form.multi_items():
            match name, value:
                case "file", UploadFile():
                    file = value
                case "file", _:
                    raise _wrong("file", "must be a file, with a file name")
                case "purpose", _:
                    purpose = value
                case _:
                    raise _wrong(short(name), "is not supported; send file and purpose alone")
        if file is None:
            raise _wrong("file", "is required")
        if purpose is None:
            raise _wrong("purpose", "is required")
        if purpose != PURPOSE:
            got = repr(short(purpose)) if isinstance(purpose, str) else "a file"
            raise _wrong("purpose", f"must be '{PURPOSE}', got {got}")
        return file_object(await store_upload(file, services), services)


@router.get(
    "",
    operation_id="openai_list_files",
    summary="List one's files, as OpenAI's clients do",
    responses=shown(_FILES) | openai_failures(_LIMIT),
)
async def list_files(
    services: ServicesNeeded,
    purpose: Annotated[str | None, Query(max_length=64, description="All are for `batch`.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_FILES)] = MAX_FILES,
    order: Annotated[Order, Query(description="By when they were made.")] = "desc",
    after: Annotated[
        str | None, Query(pattern="^[0-9a-f]{32}$", description="The id before the first one.")
    ] = None,
) -> FileObjects:
    """Show the uploads of the request's API key. The outputs of batches are not among them."""
    found, has_more = await asyncio.to_thread(
        services.files.page, current_owner(), limit, after, oldest_first=order == "asc"
    )
    data = [file_object(upload, services) for upload in found if purpose in (None, PURPOSE)]
    return FileObjects(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=has_more and bool(data),
    )


@router.get(
    "/{file_id}",
    operation_id="openai_get_file",
    summary="Look up a file, as OpenAI's clients do",
    responses=shown(FILE) | openai_failures(_NO_FILE),
)
async def get_file(file_id: FileId, services: ServicesNeeded) -> FileObject:
    """Show what is known of a file, which may be one of a batch's outputs: these are counted through."""
    if output := OUTPUT_ID.fullmatch(file_id):
        async with services.long_reads:
            return await asyncio.to_thread(_output_object, file_id, _kind(output[1]), output[2], services)
    upload = await asyncio.to_thread(services.files.find, file_id, current_viewer())
    return file_object(upload, services)


@router.delete(
    "/{file_id}",
    operation_id="openai_delete_file",
    summary="Delete a file, as OpenAI's clients do",
    responses=shown(FileDeleted(id=FILE_ID)) | openai_failures(_NO_FILE),
)
async def delete_file(file_id: FileId, services: ServicesNeeded) -> FileDeleted:
    """Remove a file now. Outputs of a batch go with it, and can't be removed before."""
    if OUTPUT_ID.fullmatch(file_id):
        raise _wrong("file_id", "is an output of a batch, which goes with its batch")
    await asyncio.to_thread(services.files.remove, file_id, current_viewer())
    return FileDeleted(id=file_id)


@router.get(
    "/{file_id}/content",
    operation_id="openai_get_file_content",
    summary="Fetch a file, as OpenAI's clients do",
    response_class=Response,
    responses=_BYTES | openai_failures(_NO_FILE),
)
async def get_file_content(file_id: FileId, services: ServicesNeeded) -> Response:
    """Send a file's bytes, or a batch's outputs."""
    if output := OUTPUT_ID.fullmatch(file_id):
        async with services.long_reads:
            record, notes = await asyncio.to_thread(_batch, file_id, output[2], services)
        lines = output_lines(record.id, _kind(output[1]), notes, services)
        return StreamingResponse(lines, media_type="application/jsonl")
    return await content_response(await asyncio.to_thread(services.files.use, file_id, current_viewer()))


def file_object(upload: Upload, services: Services) -> FileObject:
    """Return an upload as OpenAI describes a file."""
    return FileObject(
        id=upload.id,
        bytes=upload.num_bytes,
        created_at=int(upload.created_at.timestamp()),
        expires_at=int(upload.used_at.timestamp()) + services.settings.file_ttl_s,
        filename=upload.name,
    )


def _output_object(file_id: str, kind: OutputKind, batch_id: str, services: Services) -> FileObject:
    """Raises: FileNotKnown."""
    record, notes = _batch(file_id, batch_id, services)
    ended_at = int(record.ended_at or record.created_at)
    return FileObject(
        id=file_id,
        bytes=sum(map(len, output_lines(batch_id, kind, notes, services))),
        created_at=ended_at,
        expires_at=ended_at + services.batches.ttl_s,
        filename=f"{batch_id}_{kind}.jsonl",
        purpose="batch_output",
    )


def _batch(file_id: str, batch_id: str, services: Services) -> tuple[BatchRecord, BatchNotes]:
    """Return the batch that a file is an output of, once that has ended.

    Raises: FileNotKnown.
    """
    try:
        record = services.batches.get(batch_id)
        notes = NotesStore(services.settings.openai_batches_dir).get_all(batch_id)
    except BatchNotFound:
        raise FileNotKnown(file_id) from None
    if current_viewer() not in (None, record.owner) or not record.status.is_terminal:
        raise FileNotKnown(file_id)
    return record, notes


def _kind(name: str) -> OutputKind:
    return "output" if name == "output" else "error"


def _wrong(field: str, message: str) -> InvalidFields:
    return InvalidFields([FieldError(field=field, message=message)])
