"""Uploads: files that are sent once and named by their id."""

import asyncio
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Annotated, Any, BinaryIO
from urllib.parse import quote

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import UploadFile
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse

from app.errors import InvalidFields
from app.examples import FILE_ID
from app.field_errors import FieldError, short
from app.files import Upload
from app.keys import current_owner, current_viewer
from app.openapi import Responses, headers_of, problems
from app.routes.bodies import FORM_MEDIA_TYPE, takes
from app.routes.forms import parsed_form
from app.services import Services, ServicesNeeded

router = APIRouter(prefix="/files", tags=["files"])

MAX_FILES = 100  # on a page
_CHUNK_BYTES = 256 * 2**10
_UPLOADS = ("bad_request", "request_timeout", "body_too_large", "unsupported_media_type", "invalid_request")
_STORING = ("file_quota_exceeded", "too_busy", "storage_full", "storage_unavailable")
_CREATED: Responses = {201: {"headers": headers_of("Location")}}
_BYTES: Responses = {
    200: {
        "description": "The bytes, with the media type that the file was sent with.",
        "content": {"*/*": {"schema": {"type": "string", "format": "binary"}, "example": ""}},
        "headers": headers_of("ETag", "Content-Disposition"),
    }
}
_FORM: dict[str, Any] = {
    "type": "object",
    "required": ["file"],
    "additionalProperties": False,
    "properties": {"file": {"type": "string", "format": "binary", "description": "The file, with a name."}},
}
_FILE: dict[str, Any] = {
    "id": FILE_ID,
    "name": "cat.png",
    "media_type": "image/png",
    "num_bytes": 604,
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "created_at": "2026-01-02T03:04:05Z",
    "expires_at": "2026-01-03T03:04:05Z",
}


class FileInfo(BaseModel):
    """A file that was sent."""

    model_config = ConfigDict(json_schema_extra={"examples": [_FILE]})

    id: str
    name: str = Field(description="As it was sent, without folders.")
    media_type: str = Field(description="As it was sent.")
    num_bytes: int
    sha256: str
    created_at: datetime
    expires_at: datetime = Field(
        description="Later with each use; and not before the batches that refer to it have ended."
    )


class FileList(BaseModel):
    """A page of files, the newest first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"files": [_FILE], "next": FILE_ID}]})

    files: list[FileInfo]
    next: str | None = Field(description="The `cursor` of the next page; null on the last one.")


FileId = Annotated[str, Path(description="32 hexadecimal digits.", examples=[FILE_ID])]


@router.post(
    "",
    operation_id="upload_file",
    summary="Send a file",
    status_code=201,
    dependencies=[Depends(takes(FORM_MEDIA_TYPE))],
    responses=_CREATED | problems(*_UPLOADS, *_STORING),
    openapi_extra={"requestBody": {"required": True, "content": {FORM_MEDIA_TYPE: {"schema": _FORM}}}},
)
async def upload_file(http: HttpRequest, services: ServicesNeeded, response: Response) -> FileInfo:
    """Keep a file, to be named by its id in requests and as a batch. It belongs to the request's API key."""
    async with parsed_form(http, "file", max_files=1) as form:
        for name, value in form.multi_items():
            if name != "file":
                message = "unknown field; a form has one part, file"
                raise InvalidFields([FieldError(field=short(name), message=message)])
            if not isinstance(value, UploadFile):
                raise InvalidFields([FieldError(field="file", message="must be a file, with a file name")])
        file = form.get("file")
        if isinstance(file, UploadFile):
            upload = await store_upload(file, services)
            response.headers["Location"] = f"/files/{upload.id}"
            return file_info(upload, services)
    raise InvalidFields([FieldError(field="file", message="is required")])


@router.get("", operation_id="list_files", summary="List one's files", responses=problems("invalid_request"))
async def list_files(
    services: ServicesNeeded,
    limit: Annotated[int, Query(ge=1, le=MAX_FILES, description="The most on a page.")] = 20,
    cursor: Annotated[
        str | None, Query(pattern="^[0-9a-f]{32}$", description="The `next` of the page before.")
    ] = None,
) -> FileList:
    """Show the files of the request's API key, or all where there are no keys."""
    found, has_more = await asyncio.to_thread(services.files.page, current_owner(), limit, cursor)
    return FileList(
        files=[file_info(each, services) for each in found], next=found[-1].id if has_more and found else None
    )


@router.get(
    "/{file_id}", operation_id="get_file", summary="Look up a file", responses=problems("file_not_found")
)
async def get_file(file_id: FileId, services: ServicesNeeded) -> FileInfo:
    """Show what is known of a file."""
    return file_info(await asyncio.to_thread(services.files.find, file_id, current_viewer()), services)


@router.delete(
    "/{file_id}",
    operation_id="delete_file",
    summary="Delete a file",
    status_code=204,
    responses=problems("file_not_found"),
)
async def delete_file(file_id: FileId, services: ServicesNeeded) -> None:
    """Remove a file now. Jobs that were made of it need it no more; rows of batches that name it do."""
    await asyncio.to_thread(services.files.remove, file_id, current_viewer())


@router.get(
    "/{file_id}/content",
    operation_id="get_file_content",
    summary="Fetch a file",
    response_class=Response,
    responses=_BYTES | problems("file_not_found"),
)
async def get_file_content(file_id: FileId, services: ServicesNeeded) -> Response:
    """Send a file's bytes. This counts as a use."""
    upload = await asyncio.to_thread(services.files.use, file_id, current_viewer())
    return await content_response(upload)


async def store_upload(part: UploadFile, services: Services) -> Upload:
    """Store a part of a form for the request's API key.

    Raises: FileQuotaExceeded; StorageFull; StorageUnavailable.
    """
    await part.seek(0)
    return await asyncio.to_thread(
        services.files.put, current_owner(), part.filename or "", part.content_type or "", part.file
    )


def file_info(upload: Upload, services: Services) -> FileInfo:
    """Return what clients are told of a file."""
    return FileInfo(
        id=upload.id,
        name=upload.name,
        media_type=upload.media_type,
        num_bytes=upload.num_bytes,
        sha256=upload.sha256,
        created_at=upload.created_at,
        expires_at=upload.used_at + timedelta(seconds=services.settings.file_ttl_s),
    )


async def content_response(upload: Upload) -> Response:
    """Answer with a file's bytes, which no browser shows: they may be anybody's page.

    Raises: FileNotKnown.
    """
    file = await asyncio.to_thread(upload.open)
    headers = {
        "Content-Type": upload.media_type,  # here, or Starlette adds a charset to it
        "Content-Length": str(upload.num_bytes),
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(upload.name, safe='')}",
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "ETag": f'"{upload.sha256}"',
    }
    return StreamingResponse(_chunks(file), headers=headers)


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
