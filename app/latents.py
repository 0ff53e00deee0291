"""Latents that come in to be decoded, of a job, an upload or a body: checked, and stored, a blob a sample."""

import asyncio
import re
from typing import TYPE_CHECKING

from app.files import FileNotKnown, Upload
from app.sources import MAX_SOURCES_MIB, MIB, SourceFile
from models.media.base import Array
from models.spec import PipelineSpec
from workers.arrays import NPY_MEDIA_TYPE, npy_bytes, read_latents
from workers.errors import InvalidLatents, InvalidRequest, JobNotFound
from workers.messages import (
    MAX_SAMPLES_PER_JOB,
    BlobReference,
    DecodeRequest,
    FileReference,
    JobReference,
)
from workers.results import JOB_ID, StoredLatents

if TYPE_CHECKING:
    from app.services import Services

_FIELD = "latents"
_URL = re.compile(rf".*/jobs/({JOB_ID.pattern})/latents(\?.*)?", re.DOTALL)


async def find_latents(
    request: DecodeRequest, services: "Services", viewer: str | None
) -> tuple[DecodeRequest, list[SourceFile]]:
    """Return a request with the tokenizer of its latents, and their file; none where it has codes.

    A job's are read from the result store: nothing is fetched from an address.

    viewer: the API key whose jobs and uploads may be named; None for everyone's.

    Raises: InvalidRequest naming the field.
    """
    given = request.latents
    if given is None:
        return request, []
    if isinstance(given, FileReference):
        return request, [await asyncio.to_thread(_upload, given, services, viewer)]
    if isinstance(given, JobReference):
        job_id = given.job
    else:
        found = _URL.fullmatch(given.url or "")
        if found is None:
            raise InvalidRequest(f"{_FIELD}.url: must be that of a job's own latents, /jobs/ID/latents")
        job_id = found[1]
    stored = await _of_job(job_id, services, viewer)
    if isinstance(given, JobReference):
        if request.tokenizer not in (None, stored.tokenizer):
            raise InvalidLatents(
                f"tokenizer: got {request.tokenizer}, but the latents were made by {stored.tokenizer}"
            )
        request = request.model_copy(update={"tokenizer": stored.tokenizer})
    elif given.tokenizer != stored.tokenizer:
        raise InvalidLatents(
            f"{_FIELD}.tokenizer: got {given.tokenizer[:64]}, but this job's latents were made by"
            f" {stored.tokenizer}"
        )
    return request, [SourceFile(_FIELD, stored.data)]


async def store_latents(file: SourceFile, spec: PipelineSpec, services: "Services") -> list[BlobReference]:
    """Return where the latents of each sample are stored.

    Raises: InvalidLatents; StorageFull.
    """

    def store() -> list[BlobReference]:
        array = latents_of_file(file, spec)
        return [services.blobs.put(npy_bytes(sample), NPY_MEDIA_TYPE) for sample in array]

    return await asyncio.to_thread(store)


def latents_of_file(file: SourceFile, spec: PipelineSpec) -> Array:
    """Return the latents (B, d, *grid) of a file, as its pipeline has them.

    Raises: InvalidLatents; InvalidRequest.
    """
    data = file.content
    if isinstance(data, Upload):
        try:
            data = data.read()
        except FileNotKnown as error:
            raise InvalidRequest(f"{file.field}: {error}") from None
    assert isinstance(data, bytes), "latents are never sent in base64"
    return read_latents(data, spec.latents, MAX_SAMPLES_PER_JOB, file.field)


async def _of_job(job_id: str, services: "Services", viewer: str | None) -> StoredLatents:
    """Return the latents of a job that the viewer may see.

    Raises: InvalidRequest.
    """
    if not JOB_ID.fullmatch(job_id):
        raise InvalidRequest(f"{_FIELD}.job: an id is 32 hexadecimal digits, got {job_id[:64]!r}")
    try:
        if viewer is not None and await _owner(job_id, services) != viewer:
            raise JobNotFound(f"there is no job {job_id}, or its result has expired")
        return await asyncio.to_thread(services.results.read_latents, job_id)
    except JobNotFound as error:
        raise InvalidRequest(f"{_FIELD}: {error}") from None


async def _owner(job_id: str, services: "Services") -> str:
    owner = await services.queue.owner(job_id)
    return owner or await asyncio.to_thread(services.batches.owner_of_job, job_id)


def _upload(given: FileReference, services: "Services", viewer: str | None) -> SourceFile:
    try:
        upload = services.files.use(given.file, viewer)
    except FileNotKnown as error:
        raise InvalidRequest(f"{_FIELD}: {error}") from None
    if upload.num_bytes > MAX_SOURCES_MIB * MIB:
        raise InvalidRequest(
            f"{_FIELD}: a file of latents is at most {MAX_SOURCES_MIB} MiB,"
            f" got {upload.num_bytes / MIB:.1f} MiB"
        )
    return SourceFile(_FIELD, upload)
