"""The bytes of a job's outputs and latents, whole or in part."""

import asyncio
import hashlib
import re
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from app.errors import NotAcceptable, RangeNotSatisfiable
from app.keys import current_owner
from app.negotiation import best_media_type
from app.openapi import latents_responses, output_responses, problems
from app.routes.places import Index, JobId
from app.services import Services, ServicesNeeded
from models.media.base import MEDIA, medium_of
from workers.arrays import NPY_MEDIA_TYPE
from workers.errors import JobNotFound
from workers.results import StoredFile

router = APIRouter(prefix="/jobs", tags=["jobs"])

_ONE_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_SUFFIXES = {kind: suffix for name in MEDIA for suffix, kind in medium_of(name).formats.items()} | {
    NPY_MEDIA_TYPE: "npy"
}
_RANGE: dict[str, Any] = {
    "name": "Range",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "example": "bytes=0-1023",
    "description": "One range of bytes: `bytes=FIRST-LAST`, `bytes=FIRST-` or `bytes=-LENGTH`. What can't be"
    " read is all of them.",
}
_IF_NONE_MATCH: dict[str, Any] = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "The `ETag` of what the client has already.",
}
_PARAMETERS = {"parameters": [_RANGE, _IF_NONE_MATCH]}
_FAILURES = problems(
    "job_not_found", "not_acceptable", "range_not_satisfiable", "invalid_request", "queue_unavailable"
)
_RESPONSES = output_responses() | _FAILURES


@router.get(
    "/{job_id}/outputs/{index}",
    operation_id="get_output",
    summary="Fetch an output of a job",
    response_class=Response,
    responses=_RESPONSES,
    openapi_extra=_PARAMETERS,
)
async def get_output(http: HttpRequest, job_id: JobId, index: Index, services: ServicesNeeded) -> Response:
    """Send an output's bytes. They never change, so they may be cached as long as one likes."""
    output = await _read(job_id, index, services)
    return _respond(http, output, f"{job_id}-{index}")


@router.get(
    "/{job_id}/images/{index}",
    operation_id="get_image",
    summary="Fetch an image of a job",
    response_class=Response,
    responses=_RESPONSES,
    openapi_extra=_PARAMETERS,
)
async def get_image(http: HttpRequest, job_id: JobId, index: Index, services: ServicesNeeded) -> Response:
    """Send an image's bytes, counting a job's images alone."""
    job = await services.queue.get(job_id)
    urls = [image.url or "" for image in job.result.images] if job.result else []
    if index >= len(urls):
        raise JobNotFound(f"job {job_id} has no image {index}; the job is {job.status}")
    number = int(urls[index].rpartition("/")[2])
    return _respond(http, await _read(job_id, number, services), f"{job_id}-{number}")


@router.get(
    "/{job_id}/latents",
    operation_id="get_latents",
    summary="Fetch the latents of a job",
    response_class=Response,
    responses=latents_responses() | _FAILURES,
    openapi_extra=_PARAMETERS,
)
async def get_latents(http: HttpRequest, job_id: JobId, services: ServicesNeeded) -> Response:
    """Send the latents of all samples as one NumPy file: (sample, d, *grid) float32, NaN where one failed."""
    try:
        stored = await asyncio.to_thread(services.results.read_latents, job_id)
    except JobNotFound as error:
        job = await services.queue.get(job_id)
        raise JobNotFound(f"{error}; the job is {job.status}") from None
    file = StoredFile(stored.data, NPY_MEDIA_TYPE, hashlib.sha256(stored.data).hexdigest())
    response = _respond(http, file, f"{job_id}-latents")
    response.headers["Smalti-Tokenizer"] = stored.tokenizer
    return response


async def _read(job_id: str, index: int, services: Services) -> StoredFile:
    """Return an output.

    Raises: JobNotFound, saying how the job is.
    """
    try:
        return await asyncio.to_thread(services.results.read, job_id, index)
    except JobNotFound as error:
        job = await services.queue.get(job_id)
        raise JobNotFound(f"{error}; the job is {job.status}") from None


def _respond(http: HttpRequest, output: StoredFile, name: str) -> Response:
    """Answer with the bytes, a part of them, or that the client has them.

    Raises: NotAcceptable; RangeNotSatisfiable.
    """
    accept = ",".join(http.headers.getlist("accept")) or None
    if best_media_type(accept, [output.media_type]) is None:
        raise NotAcceptable(f"Accept: this output is {output.media_type}; got {(accept or '')[:200]}")
    etag = f'"{output.sha256}"'
    whose = "private" if current_owner() else "public"  # a shared cache asks for no key
    headers = {"ETag": etag, "Cache-Control": f"{whose}, max-age=31536000, immutable"}
    known = {tag.strip().removeprefix("W/") for tag in http.headers.get("if-none-match", "").split(",")}
    if known & {etag, "*"}:
        return Response(status_code=304, headers=headers)
    headers |= {
        "Accept-Ranges": "bytes",
        "Content-Disposition": f'inline; filename="{name}.{_SUFFIXES.get(output.media_type, "bin")}"',
    }
    num_bytes = len(output.data)
    wanted = http.headers.get("range", "") if http.headers.get("if-range", etag) == etag else ""
    part = parse_range(wanted, num_bytes)
    if part is None:
        return Response(output.data, 200, headers, media_type=output.media_type)
    headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{num_bytes}"
    return Response(output.data[part.start : part.stop], 206, headers, media_type=output.media_type)


def parse_range(header: str, num_bytes: int) -> range | None:
    """Return the bytes that a `Range` asks for (RFC 9110, section 14.2); None where it asks for all.

    Several ranges, other units and what can't be read are all of it, as the RFC allows.

    Raises: RangeNotSatisfiable.
    """
    found = _ONE_RANGE.fullmatch(header.strip())
    if found is None or not any(found.groups()):
        return None
    first, last = found.groups()
    if not first:
        part = range(max(0, num_bytes - int(last)), num_bytes)
    elif last and int(last) < int(first):
        return None
    else:
        part = range(int(first), min(int(last), num_bytes - 1) + 1 if last else num_bytes)
    if not part:
        raise RangeNotSatisfiable(
            f"Range: this output has bytes 0 to {num_bytes - 1}, got {header[:60]}", num_bytes
        )
    return part
