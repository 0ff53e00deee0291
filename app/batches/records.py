"""What is known of a batch, and of one row of it."""

from dataclasses import dataclass
from enum import StrEnum

from workers.messages import JobStatus


class BatchStatus(StrEnum):
    """Where a batch is in its life. failed: it could not be read at all; rows fail by themselves."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return self in (BatchStatus.SUCCEEDED, BatchStatus.FAILED, BatchStatus.CANCELLED)


@dataclass(frozen=True)
class BatchRecord:
    """A batch as it is kept. Times are of this machine's clock, in seconds.

    owner: the name of its API key. digest: of the request that made it, where that had an Idempotency-Key.
    file: the id of the upload that its rows are read from, where they did not come with the request.
    webhook_url: where its end is told. is_told: whether that waits to be sent, or was.
    waiting: why some rows wait. num_succeeded, num_failed, num_cancelled: rows by how they ended.
    num_bytes: of answers, outputs and codes, about.
    rows_per_s: over the last rows that ended; 0 where that isn't known.
    """

    id: str
    owner: str
    digest: str
    file: str | None
    created_at: float
    webhook_url: str | None = None
    is_told: bool = False
    status: BatchStatus = BatchStatus.QUEUED
    error: str | None = None
    waiting: str | None = None
    is_cancelled: bool = False
    started_at: float | None = None
    ended_at: float | None = None
    num_rows: int = 0
    num_queued: int = 0
    num_running: int = 0
    num_succeeded: int = 0
    num_failed: int = 0
    num_cancelled: int = 0
    num_bytes: int = 0
    rows_per_s: float = 0.0

    def job_id(self, number: int) -> str:
        """Return the id of a row's job: always the same, so that a row that is submitted again finds it.

        Four of its digits are of the time, or a batch would find outputs of one that had its id and expired.
        """
        return f"{self.id}{int(self.created_at) % 2**16:04x}{number:08x}"


@dataclass(frozen=True)
class NewRow:
    """A row as it was read. number: of its line. error: of one that is no request, in JSON."""

    number: int
    id: str | None
    request: bytes
    error: str | None = None
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class RowEnd:
    """How a row ended. answer: its result or its error, in JSON. num_bytes: of it and its files."""

    number: int
    status: JobStatus
    answer: str | None
    num_bytes: int = 0


@dataclass(frozen=True)
class EndedRow:
    """A row that has ended. sequence: which one it was to end, from 1."""

    number: int
    id: str | None
    status: JobStatus
    answer: str | None
    sequence: int


def batch_id_of_job(job_id: str) -> str:
    """Return the id that the batch of this job would have."""
    return job_id[:-12]
