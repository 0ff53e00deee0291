"""New batches are read, beside the feeding of others."""

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Iterator

from app.batches.file import BatchFile, RepeatedId
from app.batches.intake import Unreadable, take_in
from app.batches.records import BatchRecord
from app.batches.sqlite import FileIsGone
from app.batches.store import BatchNotFound
from app.files import FileNotKnown
from app.services import Services
from workers.errors import StorageUnavailable

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 2**20
_NUM_AT_A_TIME = 2  # so that a small batch needn't wait for a large one
_AFTER_FAILURE_S = 5.0
_MAX_SURPRISES = 3  # of one batch; what is foreseen, such as a full disk, is tried again without end
_NOT_READ = f"its rows could not be read, in {_MAX_SURPRISES} tries; the server's log says why"


class Readers:
    """The tasks that read the rows of batches into their files."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._free = asyncio.Semaphore(_NUM_AT_A_TIME)
        self._is_ending = threading.Event()
        self._num_surprises = Counter[str]()

    def ids(self) -> set[str]:
        """Return the ids of the batches that are being read, or are about to be."""
        self._tasks = {batch_id: task for batch_id, task in self._tasks.items() if not task.done()}
        return set(self._tasks)

    def begin(self, record: BatchRecord) -> None:
        """Read a batch, soon."""
        self._tasks[record.id] = asyncio.create_task(self._read(record))

    async def close(self) -> None:
        """Stop reading; what was begun leaves its batch as it was."""
        self._is_ending.set()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _read(self, record: BatchRecord) -> None:
        async with self._free:
            try:
                file = await asyncio.to_thread(self._services.batches.open, record.id)
                try:
                    await self._try_to_take_in(record, file)
                finally:
                    file.close()
            except (BatchNotFound, FileIsGone):
                return
            except StorageUnavailable as error:
                logger.warning("batch_id=%s can't be read now: %s", record.id, error)
                await asyncio.sleep(_AFTER_FAILURE_S)
            self._services.has_new_batch.set()

    async def _try_to_take_in(self, record: BatchRecord, file: BatchFile) -> None:
        """Read a batch, which fails once that has ended in a surprise too often.

        Raises: FileIsGone; StorageUnavailable.
        """
        try:
            await self._take_in(record, file)
        except (FileIsGone, StorageUnavailable):
            raise
        except Exception:  # the boundary of a batch
            logger.exception("batch_id=%s can't be read", record.id)
            self._num_surprises[record.id] += 1
            if self._num_surprises[record.id] < _MAX_SURPRISES:
                await asyncio.sleep(_AFTER_FAILURE_S)
            else:
                await asyncio.to_thread(file.fail, _NOT_READ)
        else:
            self._num_surprises.pop(record.id, None)

    async def _take_in(self, record: BatchRecord, file: BatchFile) -> None:
        began = asyncio.get_running_loop().time()
        try:
            chunks = file.source_chunks() if record.file is None else self._upload_chunks(record.file)
            await asyncio.to_thread(take_in, file, chunks, self._is_ending)
        except (Unreadable, RepeatedId, FileNotKnown) as error:
            await asyncio.to_thread(file.fail, str(error))
            logger.info("batch_id=%s failed: %s", record.id, error)
            return
        now = await asyncio.to_thread(file.record)
        took_s = asyncio.get_running_loop().time() - began
        logger.info("batch_id=%s has %d rows, read in %.1f s", record.id, now.num_rows, took_s)

    def _upload_chunks(self, file_id: str) -> Iterator[bytes]:
        with self._services.files.find(file_id, None).open() as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
