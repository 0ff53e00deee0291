"""Batches and their rows as clients see them."""

import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic import Field

from app.batches.records import BatchRecord, BatchStatus, EndedRow
from app.codes import shown_result
from app.submit import CANCELLED
from workers.messages import JobError, JobStatus, Message, Result, WebhookState

if TYPE_CHECKING:
    from app.services import Services


class RowCounts(Message):
    """How many rows are in each state."""

    queued: int = Field(description="They have not begun.")
    running: int = Field(description="They are jobs, which wait or run, or are about to be.")
    succeeded: int
    failed: int
    cancelled: int


class BatchView(Message):
    """A batch."""

    id: str
    status: BatchStatus = Field(
        description="queued: its rows are still to be read; succeeded: all have ended, each as it did;"
        " failed: the batch could not be read at all."
    )
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    expires_at: datetime | None = Field(
        default=None, description="When batch, results and outputs are removed; known once it has ended."
    )
    file: str | None = Field(default=None, description="The id of the upload that the rows came in.")
    num_rows: int = Field(description="0 until they are read.")
    counts: RowCounts
    rows_per_s: float | None = Field(default=None, description="Of late; of the whole batch, once it ended.")
    seconds_left: float | None = Field(default=None, description="An estimate.")
    error: JobError | None = None
    waiting: str | None = Field(
        default=None, description="Why some rows wait for something, while others go on."
    )
    webhook: WebhookState | None = Field(default=None, description="Where it was sent with a `webhook_url`.")


def batch_view(record: BatchRecord, ttl_s: int, webhook: WebhookState | None = None) -> BatchView:
    """Return a batch as its client sees it."""
    num_left = record.num_queued + record.num_running
    rate = record.rows_per_s
    if record.ended_at is not None and record.started_at is not None:
        rate = (record.num_rows - record.num_cancelled) / max(record.ended_at - record.started_at, 1e-3)
    return BatchView(
        id=record.id,
        status=record.status,
        created_at=_time(record.created_at),
        started_at=_time(record.started_at) if record.started_at else None,
        ended_at=_time(record.ended_at) if record.ended_at else None,
        expires_at=_time(record.ended_at + ttl_s) if record.ended_at else None,
        file=record.file,
        num_rows=record.num_rows,
        counts=RowCounts(
            queued=record.num_queued,
            running=record.num_running,
            succeeded=record.num_succeeded,
            failed=record.num_failed,
            cancelled=record.num_cancelled,
        ),
        rows_per_s=round(rate, 3) if rate else None,
        seconds_left=round(num_left / rate, 1) if rate and not record.status.is_terminal else None,
        error=JobError(code="invalid_request", message=record.error) if record.error else None,
        waiting=record.waiting,
        webhook=webhook,
    )


def row_line(row: EndedRow, record: BatchRecord, services: "Services") -> str:
    """Return a row that has ended as a line of JSON, with its codes, and addresses to get.

    To be called for a client's request, in whose name addresses are signed; it reads files.
    """
    shown: dict[str, Any] = {
        "id": row.id,
        "line": row.number,
        "seq": row.sequence,
        "status": row.status,
    }
    match row.status:
        case JobStatus.SUCCEEDED:
            assert row.answer is not None
            left_s = services.batches.ttl_s
            if record.ended_at is not None:
                left_s = max(1, int(record.ended_at + left_s - time.time()))
            result = Result.model_validate_json(row.answer)
            result = shown_result(result, record.job_id(row.number), services, left_s)
            shown["result"] = result.model_dump(mode="json")
        case JobStatus.CANCELLED:
            shown["error"] = CANCELLED.model_dump()
        case _:
            shown["error"] = json.loads(row.answer or "{}")
    return json.dumps(shown, ensure_ascii=False, separators=(",", ":"))


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
