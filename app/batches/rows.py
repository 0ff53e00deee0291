"""A row of a batch as a job's request, and a job's end as that of its row."""

import asyncio
import hashlib
import math
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from app.batches.intake import read_row
from app.batches.records import RowEnd
from app.codes import codes_of_answer
from app.errors import InvalidFields
from app.field_errors import FieldError, field_errors
from app.latents import find_latents, store_latents
from app.sources import SourceFile, files_of, store_sources
from workers.errors import InvalidRequest, ModerationFailed, ServiceError
from workers.messages import (
    DecodeRequest,
    EncodeRequest,
    GenerateRequest,
    JobError,
    JobStatus,
    JobView,
    Operation,
    Request,
    Resolved,
    Result,
)
from workers.queue.records import MESSAGES_VERSION, result_text

if TYPE_CHECKING:
    from app.services import Services

_BYTES_PER_CODE = 5  # of JSON
_REQUESTS: dict[Operation, type[GenerateRequest] | type[EncodeRequest] | type[DecodeRequest]] = {
    "generate": GenerateRequest,
    "encode": EncodeRequest,
    "decode": DecodeRequest,
}


async def resolve_row(line: bytes, job_id: str, owner: str, services: "Services") -> Resolved:
    """Return the request of a row with every choice made, its sources stored.

    A seed that is left open follows from the job's id, so that a row which has to be computed again, as its
    job is lost with the queue's memory, gets the bytes that may be stored already.

    owner: the API key whose uploads it may name.

    Raises: InvalidRequest; StorageFull, StorageUnavailable; TooBusy.
    """
    request = _request(line)
    files: list[SourceFile] = []
    if isinstance(request, DecodeRequest):
        request, files = await find_latents(request, services, owner)
    else:
        files = await asyncio.to_thread(_files, request, owner, services)
    spec = services.catalog.pipeline_for(request)
    sources = []
    if files and isinstance(request, DecodeRequest):
        sources = await store_latents(files[0], spec, services)
    elif files:
        services.catalog.check(request)
        sources = await store_sources(files, spec, services)
    changes: dict[str, Any] = {"priority": "batch"}
    if isinstance(request, GenerateRequest):
        changes |= {"pipeline": spec.name, "seed": seed_of(job_id) if request.seed is None else request.seed}
    elif isinstance(request, EncodeRequest) and request.posterior == "sample" and request.seed is None:
        changes["seed"] = seed_of(job_id)
    return services.catalog.resolve(request.model_copy(update=changes), sources)


def end_of_row(number: int, job: JobView) -> RowEnd:
    """Return how a row ended, by its job, which has."""
    answer, num_bytes = None, 0
    if job.result is not None:
        answer = result_text(job.result, MESSAGES_VERSION)
        num_bytes = sum(output.num_bytes or 0 for output in job.result.outputs) + _num_code_bytes(job.result)
    elif job.error is not None:
        answer = job.error.model_dump_json()
    return RowEnd(number, job.status, answer, num_bytes + len(answer or ""))


def _num_code_bytes(result: Result) -> int:
    """Return about how much the codes hold that are stored beside a result."""
    if result.codes is None:
        return 0
    return _BYTES_PER_CODE * math.prod(result.codes.grid) * len(result.outputs)


def failed_row(number: int, error: ServiceError) -> RowEnd:
    """Return the end of a row that can't become a job."""
    answer = JobError(code=error.code, message=str(error)).model_dump_json()
    return RowEnd(number, JobStatus.FAILED, answer)


def is_unchecked(job: JobView | None) -> bool:
    """Say whether the moderation hook could not check what a job has made."""
    if job is None:
        return False
    errors = [job.error, *(output.error for output in (job.result.outputs if job.result else ()))]
    return any(each is not None and each.message == ModerationFailed.message for each in errors)


def _request(line: bytes) -> Request:
    """Raises: InvalidRequest."""
    row = read_row(line)
    kind = _REQUESTS[row.operation]
    for field in ("priority", "webhook_url"):
        if field in row.body:
            raise InvalidFields([FieldError(field=field, message="rows of a batch have none; leave it out")])
    try:
        body = codes_of_answer(row.body) if kind is DecodeRequest else row.body
        return TypeAdapter[Request](kind).validate_python(body)
    except ValidationError as error:
        found = field_errors(error.errors(include_url=False), tuple(kind.model_fields))
        raise InvalidFields(found) from None
    except ValueError as error:
        raise InvalidRequest(f"body: {error}") from None


def _files(request: GenerateRequest | EncodeRequest, owner: str, services: "Services") -> list[SourceFile]:
    """Raises: InvalidRequest."""
    files = files_of(request, services.files, owner)
    if isinstance(request, GenerateRequest):
        return files
    if request.image is not None and request.source is not None:
        raise InvalidFields([FieldError(field="image", message="is the older name of source; send one")])
    if not files:
        raise InvalidFields([FieldError(field="source", message="is required")])
    return files


def seed_of(job_id: str) -> int:
    """Return a seed of 53 bits."""
    return int(hashlib.sha256(job_id.encode()).hexdigest()[:16], 16) >> 11
