"""One batch: an SQLite file with its rows, which survives the death of any process at any moment."""

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

from app.batches.records import BatchRecord, BatchStatus, EndedRow, NewRow, RowEnd
from app.batches.schema import SCHEMA
from app.batches.sqlite import FileIsGone, connect, storing
from workers.errors import StorageUnavailable
from workers.messages import JobStatus

_RATE_ROWS = 200  # of which the rate is taken
_CHUNK_BYTES = 2**20
_ROWS_AT_A_TIME = 200
_RECORD = ", ".join(field.name for field in fields(BatchRecord) if field.name != "rows_per_s")
_ENDED = "number, id, status, answer, sequence"


class RepeatedId(ValueError):
    """Two rows have one id."""

    def __init__(self, row_id: str, first: int, second: int) -> None:
        super().__init__(f"lines {first} and {second} have one id, {row_id!r}; give each row its own")


class BatchFile:
    """An open batch. Every change is one transaction; any thread, and any process, may call any method.

    Every method may raise FileIsGone, StorageFull and StorageUnavailable.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection = connect(path, "rw")

    @staticmethod
    def create(path: Path, record: BatchRecord, source: bytes | None) -> None:
        """Write a new batch, synced; its rows are still to be read, from ``source`` or an upload."""
        connection = connect(path, "rwc")
        with storing():
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=FULL")
                connection.executescript(f"BEGIN; {SCHEMA} COMMIT;")
                connection.execute(
                    "INSERT INTO batch (id, owner, digest, file, source, status, created_at, webhook_url)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        record.id, record.owner, record.digest, record.file, source, record.status,
                        record.created_at, record.webhook_url,
                    ),
                )  # fmt: skip
            finally:
                connection.close()

    def record(self) -> BatchRecord:
        """Return what is known of the batch."""
        with self._using() as use:
            found = use.execute(f"SELECT {_RECORD} FROM batch").fetchone()
            if found is None:
                raise FileIsGone
            record = BatchRecord(**dict(zip(_RECORD.split(", "), found, strict=True)), rows_per_s=_rate(use))
        values = {
            "status": BatchStatus(record.status),
            "is_cancelled": bool(record.is_cancelled),
            "is_told": bool(record.is_told),
        }
        return BatchRecord(**{**vars(record), **values})

    def source_chunks(self) -> Iterator[bytes]:
        """Yield what the rows are to be read from, where that came with the request."""
        connection = connect(self._path, "rw")  # of its own, as rows are written while this is read
        try:
            with storing():
                if connection.execute("SELECT source IS NULL FROM batch").fetchone()[0]:
                    return  # it has ended, or was read, meanwhile
                with connection.blobopen("batch", "source", 1, readonly=True) as blob:
                    while chunk := blob.read(_CHUNK_BYTES):
                        yield chunk
        finally:
            connection.close()

    def take_in(self, rows: Iterable[NewRow]) -> None:
        """Store the rows, all or none: whatever ``rows`` raises leaves the batch as it was.

        Does nothing where that was done, or the batch has ended, meanwhile.

        Raises: RepeatedId.
        """
        now = time.time()
        with self._changing() as use:
            if use.execute("SELECT status FROM batch").fetchone()[0] != BatchStatus.QUEUED:
                return
            num_rows = num_failed = 0
            reading = iter(rows)
            while chunk := list(islice(reading, _ROWS_AT_A_TIME)):
                num_failed = _insert(use, chunk, num_failed, now)
                num_rows += len(chunk)
            use.execute(
                "UPDATE batch SET source = NULL, status = ?, started_at = ?, num_rows = ?, num_queued = ?,"
                " num_failed = ?",
                (BatchStatus.RUNNING, now, num_rows, num_rows - num_failed, num_failed),
            )

    def fail(self, why: str) -> None:
        """End a batch that can't be read."""
        with self._changing() as use:
            if use.execute("SELECT status FROM batch").fetchone()[0] == BatchStatus.QUEUED:
                use.execute("UPDATE batch SET error = ?", (why,))
                _end(use, BatchStatus.FAILED)
        self._shrink()

    def claim(self, most: int) -> list[int]:
        """Take the next rows that wait, and return their numbers; from now on they count as running."""
        with self._changing() as use:
            taken = use.execute(
                "UPDATE rows SET status = ? WHERE number IN (SELECT number FROM rows WHERE sequence IS NULL"
                " AND status = ? ORDER BY number LIMIT ?) RETURNING number",
                (JobStatus.RUNNING, JobStatus.QUEUED, most),
            ).fetchall()
            use.execute(
                "UPDATE batch SET num_queued = num_queued - ?, num_running = num_running + ?",
                (len(taken), len(taken)),
            )
        return sorted(number for (number,) in taken)

    def running(self) -> list[int]:
        """Return the numbers of the rows that were taken and have not ended."""
        with self._using() as use:
            found = use.execute(
                "SELECT number FROM rows WHERE sequence IS NULL AND status = ? ORDER BY number",
                (JobStatus.RUNNING,),
            )
            return [number for (number,) in found]

    def requests_of(self, numbers: Sequence[int]) -> dict[int, bytes]:
        """Return the lines of rows that have not ended."""
        query = "SELECT request FROM rows WHERE number = ?"
        with self._using() as use:
            return {number: use.execute(query, (number,)).fetchone()[0] for number in numbers}

    def end_rows(self, ends: Sequence[RowEnd]) -> None:
        """Write down how running rows ended, in this order; and that of the batch with its last row."""
        with self._changing() as use:
            _end_rows(use, ends)
            has_ended = _end_if_done(use)
        if has_ended:
            self._shrink()

    def cancel(self) -> None:
        """End the rows that wait, and the batch once none runs; one that has ended stays as it is."""
        with self._changing() as use:
            status, is_cancelled = use.execute("SELECT status, is_cancelled FROM batch").fetchone()
            if BatchStatus(status).is_terminal or is_cancelled:
                return
            use.execute("UPDATE batch SET is_cancelled = 1")
            use.execute(
                "WITH waiting AS (SELECT number, row_number() OVER (ORDER BY number) AS place FROM rows"
                " WHERE sequence IS NULL AND status = ?)"
                " UPDATE rows SET status = ?, request = NULL, ended_at = ?, sequence = ? + place FROM waiting"
                " WHERE rows.number = waiting.number",
                (JobStatus.QUEUED, JobStatus.CANCELLED, time.time(), _last_sequence(use)),
            )
            use.execute("UPDATE batch SET num_cancelled = num_cancelled + num_queued, num_queued = 0")
            _end_if_done(use)
        self._shrink()

    def note_waiting(self, why: str | None) -> None:
        """Note why some rows wait."""
        with self._changing() as use:
            use.execute("UPDATE batch SET waiting = ?", (why,))

    def mark_told(self) -> None:
        """Note that the end of the batch has been told, or waits to be."""
        with self._changing() as use:
            use.execute("UPDATE batch SET is_told = 1")

    def ended_rows(self, after: int, most: int) -> list[EndedRow]:
        """Return rows that have ended, as they did, after the one with this sequence."""
        query = f"SELECT {_ENDED} FROM rows WHERE sequence > ? ORDER BY sequence LIMIT ?"
        return self._ended(query, (after, most))

    def ended_rows_in_order(self, after: int, most: int) -> list[EndedRow]:
        """Return rows as they came, after the one with this number, up to the first that has not ended."""
        query = f"SELECT {_ENDED} FROM rows WHERE number > ? ORDER BY number LIMIT ?"
        rows = self._ended(query, (after, most))
        has_ended = [row.sequence is not None for row in rows]
        return rows[: has_ended.index(False)] if False in has_ended else rows

    def files(self) -> list[str]:
        """Return the ids of the uploads that the batch refers to."""
        with self._using() as use:
            found = use.execute("SELECT id FROM files UNION SELECT file FROM batch WHERE file IS NOT NULL")
            return [file_id for (file_id,) in found]

    def close(self) -> None:
        """Close the file, once no thread uses it."""
        with self._lock:
            self._connection.close()

    def _shrink(self) -> None:
        """Give back the room of what was sent, which no row needs any more, if there is room to do so."""
        with suppress(StorageUnavailable, FileIsGone), self._using() as use:
            use.execute("VACUUM")

    def _ended(self, query: str, values: Sequence[Any]) -> list[EndedRow]:
        with self._using() as use:
            found = use.execute(query, values).fetchall()
        return [
            EndedRow(number, row_id, JobStatus(status), answer, sequence)
            for number, row_id, status, answer, sequence in found
        ]

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self._lock, storing():
            yield self._connection

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        with self._using() as use:
            use.execute("BEGIN IMMEDIATE")
            try:
                yield use
                use.execute("COMMIT")
            except BaseException:
                if use.in_transaction:
                    use.execute("ROLLBACK")
                raise


def _insert(use: sqlite3.Connection, rows: Sequence[NewRow], num_failed: int, now: float) -> int:
    """Add new rows; those that are no request have failed. Return how many have until now.

    Raises: RepeatedId.
    """
    values: list[tuple[object, ...]] = []
    for row in rows:
        status = JobStatus.QUEUED
        ended: tuple[int | None, float | None] = (None, None)
        if row.error is not None:
            num_failed += 1
            status = JobStatus.FAILED
            ended = (num_failed, now)
        values.append((row.number, row.id, row.request, status, row.error, *ended))
    try:
        use.executemany(
            "INSERT INTO rows (number, id, request, status, answer, sequence, ended_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            values,
        )
    except sqlite3.IntegrityError:
        for row in rows:
            found = use.execute("SELECT number FROM rows WHERE id = ?", (row.id,)).fetchone()
            if found is not None and found[0] != row.number:
                raise RepeatedId(str(row.id), found[0], row.number) from None
        raise
    use.executemany("INSERT OR IGNORE INTO files VALUES (?)", ((each,) for row in rows for each in row.files))
    return num_failed


def _end_rows(use: sqlite3.Connection, ends: Sequence[RowEnd]) -> None:
    now, sequence = time.time(), _last_sequence(use)
    for end in ends:
        is_ours = use.execute(
            "UPDATE rows SET status = ?, answer = ?, request = NULL, ended_at = ?, sequence = ?"
            " WHERE number = ? AND sequence IS NULL",
            (end.status, end.answer, now, sequence + 1, end.number),
        ).rowcount
        if is_ours:
            sequence += 1
            use.execute(
                f"UPDATE batch SET num_running = num_running - 1, num_{end.status} = num_{end.status} + 1,"
                " num_bytes = num_bytes + ?",
                (end.num_bytes,),
            )


def _end_if_done(use: sqlite3.Connection) -> bool:
    """End a batch whose rows all have; say so."""
    left, is_cancelled = use.execute("SELECT num_queued + num_running, is_cancelled FROM batch").fetchone()
    if not left:
        _end(use, BatchStatus.CANCELLED if is_cancelled else BatchStatus.SUCCEEDED)
    return not left


def _end(use: sqlite3.Connection, status: BatchStatus) -> None:
    ended = "UPDATE batch SET status = ?, ended_at = ?, waiting = NULL, source = NULL"
    use.execute(ended, (status, time.time()))


def _last_sequence(use: sqlite3.Connection) -> int:
    found = use.execute("SELECT max(sequence) FROM rows WHERE sequence IS NOT NULL").fetchone()
    return int(found[0] or 0)


def _rate(use: sqlite3.Connection) -> float:
    """Return how many rows end in a second, of late."""
    last = _last_sequence(use)
    first = max(1, last - _RATE_ROWS)
    query = "SELECT ended_at FROM rows WHERE sequence = ?"
    if last == first or not last:
        return 0.0
    ((began,), (ended,)) = (use.execute(query, (each,)).fetchone() for each in (first, last))
    return (last - first) / (ended - began) if ended > began else 0.0
