"""All batches: a folder with one file each."""

import fcntl
import hashlib
import logging
import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from app.batches.file import BatchFile
from app.batches.records import BatchRecord, batch_id_of_job
from app.batches.sqlite import FileIsGone
from app.idempotency import Idempotency
from workers.errors import IdempotencyKeyReused, QueueFull, ServiceError
from workers.storage import make_private, open_lock, storing_in, sync_folder

logger = logging.getLogger(__name__)

_ID = re.compile(r"[0-9a-f]{20}")
_SUFFIX = ".db"
_BESIDE = ("-wal", "-shm", "-journal")  # what SQLite keeps beside a file that is open, or was when killed
_TEMPORARY = ".new-"
_STALE_S = 3600


class BatchNotFound(ServiceError):
    """No such batch, for this client."""

    code = "batch_not_found"

    def __init__(self, batch_id: str) -> None:
        super().__init__(f"there is no batch {batch_id[:64]!r}, or it has expired")


class BatchStore:
    """Batches by id, each `<folder>/<id>.db`. Any process may call any method.

    ttl_s: how long a batch is kept after its end. max_unfinished: how many of one API key may be under way.
    max_bytes_per_key: that those of one API key hold that have ended, but for the last; 0: any number.
    """

    def __init__(
        self, folder: Path, ttl_s: int, max_unfinished: int = 100, *, max_bytes_per_key: int = 0
    ) -> None:
        self._folder = folder
        self._max_bytes_per_key = max_bytes_per_key
        self._max_unfinished = max_unfinished
        self.ttl_s = ttl_s
        self._ended: dict[str, BatchRecord] = {}  # which don't change any more, until they expire

    def create(
        self,
        owner: str,
        source: bytes | None,
        *,
        file: str | None = None,
        webhook_url: str | None = None,
        idempotency: Idempotency | None = None,
        prepare: Callable[[str], None] = lambda batch_id: None,
    ) -> tuple[BatchRecord, bool]:
        """Store a new batch, synced; return it, and whether its Idempotency-Key had made it before.

        source: its rows, as JSON Lines; or ``file``, the id of an upload that has them. webhook_url: where
        its end is told, checked already. prepare: is called with the id of a new batch before that is there.

        Raises: what ``prepare`` does; IdempotencyKeyReused; QueueFull; StorageFull, StorageUnavailable.
        """
        batch_id = secrets.token_hex(10) if idempotency is None else _id_of_key(idempotency)
        digest = "" if idempotency is None else idempotency.digest
        make_private(self._folder)
        if idempotency is not None and (made := self._find(batch_id)):
            return _replayed(made, digest), True
        num_unfinished = sum(each.owner == owner for each in self.unfinished())
        if num_unfinished >= self._max_unfinished:
            raise QueueFull(
                f"{num_unfinished} batches have not ended, which is the most that may", retry_after_s=60
            )
        record = BatchRecord(batch_id, owner, digest, file, created_at=time.time(), webhook_url=webhook_url)
        prepare(batch_id)
        return (record, False) if self._add(record, source) else (_replayed(self.get(batch_id), digest), True)

    def get(self, batch_id: str) -> BatchRecord:
        """Return what is known of a batch.

        Raises: BatchNotFound.
        """
        record = self._find(batch_id)
        if record is None:
            raise BatchNotFound(batch_id)
        return record

    def all(self) -> list[BatchRecord]:
        """Return what is known of every batch, the newest first."""
        found = [record for batch_id in self.ids() if (record := self._find(batch_id))]
        return sorted(found, key=lambda record: (record.created_at, record.id), reverse=True)

    def unfinished(self, besides: Collection[str] = ()) -> list[BatchRecord]:
        """Return the batches that have not ended, the oldest first; without those that are named."""
        fresh = [self._find(each) for each in self.ids() if not (each in besides or self._known_end(each))]
        found = [record for record in fresh if record is not None and not record.status.is_terminal]
        return sorted(found, key=lambda record: (record.created_at, record.id))

    def untold(self) -> list[BatchRecord]:
        """Return batches that have ended, as far as this process has seen, and whose end is to be told."""
        seen = [each.id for each in list(self._ended.values()) if each.webhook_url and not each.is_told]
        for batch_id in seen:
            self._ended.pop(batch_id, None)  # another process may have told it meanwhile
        found = [self._find(batch_id) for batch_id in seen]
        return [record for record in found if record is not None and not record.is_told]

    def mark_told(self, batch_id: str) -> None:
        """Note that the end of a batch has been told, or waits to be.

        Raises: StorageFull, StorageUnavailable.
        """
        with suppress(BatchNotFound), self.opened(batch_id) as file:
            file.mark_told()
        self._ended.pop(batch_id, None)

    def ids(self) -> set[str]:
        """Return the ids of all batches."""
        try:
            return {path.stem for path in self._folder.iterdir() if _is_batch(path)}
        except FileNotFoundError:
            return set()

    def owner_of_job(self, job_id: str) -> str:
        """Return the name of the API key whose batch has this job; "" for none, and for a job of no batch."""
        record = self._find(batch_id_of_job(job_id))
        return "" if record is None else record.owner

    def open(self, batch_id: str) -> BatchFile:
        """Open a batch's file.

        Raises: BatchNotFound.
        """
        if not _ID.fullmatch(batch_id):
            raise BatchNotFound(batch_id)
        try:
            return BatchFile(self._path(batch_id))
        except FileIsGone:
            raise BatchNotFound(batch_id) from None

    @contextmanager
    def opened(self, batch_id: str) -> Iterator[BatchFile]:
        """Use a batch's file.

        Raises: BatchNotFound.
        """
        file = self.open(batch_id)
        try:
            yield file
        except FileIsGone:
            raise BatchNotFound(batch_id) from None
        finally:
            file.close()

    def cancel(self, batch_id: str) -> BatchRecord:
        """End a batch that has not ended; rows that run end soon after.

        Raises: BatchNotFound; StorageFull, StorageUnavailable.
        """
        with self.opened(batch_id) as file:
            file.cancel()
            return file.record()

    def files_in_use(self) -> set[str]:
        """Return the ids of the uploads that a batch refers to which has not ended, as far as it is read."""
        found: set[str] = set()
        for record in self.unfinished():
            try:
                with self.opened(record.id) as file:
                    found.update(file.files())
            except BatchNotFound:
                continue
        return found

    def owners_of_unread(self) -> set[str]:
        """Return the API keys with a batch whose rows are still to be read: they may name any upload."""
        return {record.owner for record in self.unfinished() if record.started_at is None}

    def sweep(self) -> int:
        """Remove batches that ended so long ago, and the oldest of a key that hold too much; return how many.

        What is left of their outputs goes with the next sweep of the result store.
        """
        ended = [each for each in self.all() if each.ended_at is not None]
        gone = [each for each in ended if self._has_expired(each)]
        if self._max_bytes_per_key:
            gone += _beyond(self._max_bytes_per_key, [each for each in ended if not self._has_expired(each)])
        for record in gone:
            _unlink(self._path(record.id))
            self._ended.pop(record.id, None)
        for path in self._folder.glob(f"{_TEMPORARY}*"):
            if path.stat(follow_symlinks=False).st_mtime < time.time() - _STALE_S:  # of one that was killed
                _unlink(path)
        return len(gone)

    def try_lock(self) -> int | None:
        """Return the descriptor of the lock for the one process that feeds; None where another has it.

        It is released with the descriptor, and so with the process, however that ends.
        """
        make_private(self._folder)
        with storing_in(self._folder):
            lock = open_lock(self._folder / ".lock")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            return None
        return lock

    def _add(self, record: BatchRecord, source: bytes | None) -> bool:
        """Store a batch, whole or not at all, unless there is one with its id; return whether it is new."""
        new, path = self._folder / f"{_TEMPORARY}{secrets.token_hex(8)}", self._path(record.id)
        try:
            BatchFile.create(new, record, source)
            with storing_in(self._folder):
                if not path.exists():
                    _unlink_beside(path)  # of one that had the same key and has expired
                try:
                    os.link(new, path)  # unlike a rename, this never replaces
                except FileExistsError:
                    return False
                sync_folder(self._folder)
        finally:
            _unlink(new)
        return True

    def _find(self, batch_id: str) -> BatchRecord | None:
        known = self._known_end(batch_id)
        if known is not None and self._path(batch_id).exists():
            return known
        self._ended.pop(batch_id, None)
        try:
            with self.opened(batch_id) as file:
                record = file.record()
        except BatchNotFound:
            return None
        if record.status.is_terminal:
            self._ended[batch_id] = record
        return record

    def _known_end(self, batch_id: str) -> BatchRecord | None:
        """Return a batch that has ended; none that has expired, as another may have its id by now."""
        record = self._ended.get(batch_id)
        return None if record is None or self._has_expired(record) else record

    def _has_expired(self, record: BatchRecord) -> bool:
        return record.ended_at is not None and record.ended_at + self.ttl_s < time.time()

    def _path(self, batch_id: str) -> Path:
        return self._folder / f"{batch_id}{_SUFFIX}"


def _beyond(max_bytes: int, ended: Sequence[BatchRecord]) -> list[BatchRecord]:
    """Return the oldest batches of API keys whose batches hold more than that; never a key's last."""
    held: Counter[str] = Counter()
    found = []
    for record in sorted(ended, key=lambda each: each.ended_at or 0, reverse=True):
        is_last = record.owner not in held
        held[record.owner] += record.num_bytes
        if not is_last and held[record.owner] > max_bytes:
            found.append(record)
    return found


def _is_batch(path: Path) -> bool:
    return path.suffix == _SUFFIX and _ID.fullmatch(path.stem) is not None


def _id_of_key(idempotency: Idempotency) -> str:
    """Return the one id that a client's key can make: the same in every process, without a list of keys."""
    text = f"{idempotency.owner}\n{idempotency.key}"
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _replayed(made: BatchRecord, digest: str) -> BatchRecord:
    if made.digest != digest:
        raise IdempotencyKeyReused(f"batch {made.id}")
    return made


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)
    _unlink_beside(path)


def _unlink_beside(path: Path) -> None:
    for suffix in _BESIDE:
        path.with_name(f"{path.name}{suffix}").unlink(missing_ok=True)
