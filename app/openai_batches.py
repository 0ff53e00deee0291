"""Batches of ours as OpenAI's Batch API has them: what is kept of them beside, and their output files."""

import json
import re
import secrets
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field

from app.batches.records import BatchRecord, BatchStatus, EndedRow
from app.batches.store import BatchNotFound
from app.errors import problem_of
from app.openai_batch_input import BatchError, RowFailure
from app.openai_errors import failure_of_problem
from app.openai_images import ImageData, format_of, in_base64
from workers.messages import JobStatus, Result
from workers.storage import make_private, storing_in, write_new

if TYPE_CHECKING:
    from app.services import Services

Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
OutputKind = Literal["output", "error"]

OUTPUT_ID = re.compile(r"(output|error)-([0-9a-f]{20})")
_ROWS_AT_A_TIME = 20
_MAX_FAILURES_TOLD = 100  # of a batch that has failed
_STATUSES = {
    BatchStatus.QUEUED: "validating",
    BatchStatus.RUNNING: "in_progress",
    BatchStatus.SUCCEEDED: "completed",
    BatchStatus.FAILED: "failed",
    BatchStatus.CANCELLED: "cancelled",
}


class BatchNotes(BaseModel):
    """What OpenAI's batches have and ours don't. failures: of rows, by the line of the input."""

    input_file_id: str
    completion_window: str
    metadata: Metadata | None = None
    errors: list[BatchError] = []
    failures: dict[int, RowFailure] = {}


class RequestCounts(BaseModel):
    """How many requests there are, and how many have ended in which way."""

    total: int
    completed: int
    failed: int


class BatchErrors(BaseModel):
    """Why a batch was not begun."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class BatchObject(BaseModel):
    """A batch, as OpenAI describes one."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str = "/v1/images/generations"
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None = Field(default=None, description="Of the answers, once the batch has ended.")
    error_file_id: str | None = Field(default=None, description="Of requests that failed.")
    created_at: int
    in_progress_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    cancelled_at: int | None = None
    expires_at: int | None = Field(default=None, description="null: no batch is given up for its age.")
    request_counts: RequestCounts
    metadata: Metadata | None = None


class BatchObjects(BaseModel):
    """A page of batches, the newest first."""

    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class NotesStore:
    """A JSON file for each batch made as OpenAI's clients make them, or two: one with all failures."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, batch_id: str, notes: BatchNotes) -> None:
        """Keep notes of a batch. Raises: StorageFull, StorageUnavailable."""
        make_private(self._folder)
        told = dict(list(notes.failures.items())[:_MAX_FAILURES_TOLD])
        if len(told) < len(notes.failures):  # in a file of their own, as clients ask for the rest each second
            self._write(self._path(batch_id, ".all"), notes)
        else:
            self._path(batch_id, ".all").unlink(missing_ok=True)
        self._write(self._path(batch_id), notes.model_copy(update={"failures": told}))

    def get(self, batch_id: str) -> BatchNotes:
        """Return the notes of a batch, with its first failures.

        Raises: BatchNotFound for one that was made in another way.
        """
        try:
            return BatchNotes.model_validate_json(self._path(batch_id).read_bytes())
        except FileNotFoundError:
            raise BatchNotFound(batch_id) from None

    def get_all(self, batch_id: str) -> BatchNotes:
        """Return the notes of a batch, with all its failures. Raises: BatchNotFound."""
        try:
            return BatchNotes.model_validate_json(self._path(batch_id, ".all").read_bytes())
        except FileNotFoundError:
            return self.get(batch_id)

    def has(self, batch_id: str) -> bool:
        """Say whether there are notes of a batch."""
        return self._path(batch_id).exists()

    def sweep(self, kept: Collection[str], older_than_s: float) -> None:
        """Remove the notes of all other batches, and what is left of a process that was killed.

        older_than_s: those of a batch that was made after ``kept`` was read are younger.
        """
        oldest = time.time() - older_than_s
        for path in self._folder.glob("*"):
            with suppress(FileNotFoundError):
                if path.name.partition(".")[0] not in kept and path.stat().st_mtime < oldest:
                    path.unlink()

    def _write(self, path: Path, notes: BatchNotes) -> None:
        """Write a file whole, or not at all. Raises: StorageFull, StorageUnavailable."""
        with storing_in(self._folder):
            temporary = self._folder / f".{secrets.token_hex(8)}"
            try:
                write_new(temporary, notes.model_dump_json().encode())
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)

    def _path(self, batch_id: str, kind: str = "") -> Path:
        return self._folder / f"{batch_id}{kind}.json"


def batch_object(record: BatchRecord, notes: BatchNotes) -> BatchObject:
    """Return a batch as OpenAI describes one."""
    has_ended = record.status.is_terminal
    is_cancelling = record.is_cancelled and not has_ended
    ended_at = None if record.ended_at is None else int(record.ended_at)
    errors = None
    if record.status is BatchStatus.FAILED:
        found = notes.errors or [
            BatchError(
                **each.body.error.model_dump(include={"message", "param"}), code="invalid_request", line=line
            )
            for line, each in sorted(notes.failures.items())[:_MAX_FAILURES_TOLD]
        ]
        errors = BatchErrors(data=found or [BatchError(code="invalid_request", message=record.error or "")])
    num_bad = record.num_failed + record.num_cancelled
    return BatchObject(
        id=record.id,
        errors=errors,
        input_file_id=notes.input_file_id,
        completion_window=notes.completion_window,
        status="cancelling" if is_cancelling else _STATUSES[record.status],
        output_file_id=f"output-{record.id}" if has_ended and record.num_succeeded else None,
        error_file_id=f"error-{record.id}" if has_ended and num_bad else None,
        created_at=int(record.created_at),
        in_progress_at=None if record.started_at is None else int(record.started_at),
        completed_at=ended_at if record.status is BatchStatus.SUCCEEDED else None,
        failed_at=ended_at if record.status is BatchStatus.FAILED else None,
        cancelled_at=ended_at if record.status is BatchStatus.CANCELLED else None,
        request_counts=RequestCounts(
            total=record.num_rows, completed=record.num_succeeded, failed=record.num_failed
        ),
        metadata=notes.metadata,
    )


def output_lines(batch_id: str, kind: OutputKind, notes: BatchNotes, services: "Services") -> Iterator[bytes]:
    """Yield the lines of a batch's output file, or of its error file. It reads files.

    Raises: BatchNotFound; JobNotFound.
    """
    after = 0
    with services.batches.opened(batch_id) as file:
        record = file.record()
        created = int(record.ended_at or record.created_at)
        while rows := file.ended_rows(after, _ROWS_AT_A_TIME):
            after = rows[-1].sequence
            for row in rows:
                if (row.status is JobStatus.SUCCEEDED) == (kind == "output"):
                    told = _told(record, row, notes, created, services)
                    yield json.dumps(told, separators=(",", ":")).encode() + b"\n"


def _told(
    record: BatchRecord, row: EndedRow, notes: BatchNotes, created: int, services: "Services"
) -> dict[str, Any]:
    job_id = record.job_id(row.number)
    response, error = None, None
    match row.status:
        case JobStatus.SUCCEEDED:
            body = _pictures(job_id, Result.model_validate_json(row.answer or ""), created, services)
            response = {"status_code": 200, "request_id": job_id, "body": body}
        case JobStatus.CANCELLED:
            error = {"code": "batch_cancelled", "message": "the batch was cancelled before this was done"}
        case _:
            failure = notes.failures.get(row.number)
            if failure is None:
                told = json.loads(row.answer or "{}")
                problem = problem_of(told.get("code", "internal_error"), told.get("message", ""))
                status, envelope = failure_of_problem(problem)
                failure = RowFailure(status=int(status), body=envelope)
            response = {
                "status_code": failure.status,
                "request_id": job_id,
                "body": failure.body.model_dump(),
            }
    return {"id": f"batch_req_{job_id}", "custom_id": row.id, "response": response, "error": error}


def _pictures(job_id: str, result: Result, created: int, services: "Services") -> dict[str, Any]:
    """Return what /v1/images/generations answers, but for what only its request says."""
    data, shown = [], None
    for output in result.outputs:
        if output.error is not None:
            data.append(ImageData(error=output.error))
            continue
        shown = shown or output
        file = services.results.read(job_id, output.sample)
        data.append(ImageData(b64_json=in_base64(file.data)))
    return {
        "created": created,
        "data": [each.model_dump(mode="json", exclude_none=True) for each in data],
        "output_format": format_of(shown.media_type or "") if shown else None,
        "size": f"{shown.width_px}x{shown.height_px}" if shown else None,
        "model": result.pipeline,
        "seed": result.seed,
        "warnings": result.warnings,
    }
