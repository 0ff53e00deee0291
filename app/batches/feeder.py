"""Rows of batches become jobs, a few at a time, and jobs that have ended become rows again.

Of all API processes one feeds: the one that holds the lock of the batches' folder. When it dies another goes
on from what is in the files. A row's job has an id that follows from the row, so one that was submitted
already is found and not done again.
"""

import asyncio
import logging
import os
from collections.abc import Sequence
from contextlib import suppress

from app.batches.pace import Backoff, Places, assured_places
from app.batches.reading import Readers
from app.batches.records import BatchRecord, RowEnd
from app.batches.rows import end_of_row, failed_row, is_unchecked, resolve_row
from app.batches.shares import Need, share
from app.batches.sqlite import FileIsGone
from app.batches.store import BatchNotFound
from app.batches.telling import tell_ends
from app.batches.worked import Worked
from app.errors import TooBusy
from app.services import Services
from workers.errors import (
    InternalError,
    JobNotFound,
    ModerationFailed,
    PipelineNotServed,
    QueueFull,
    QueueUnavailable,
    ServiceError,
    StorageFull,
    StorageUnavailable,
)
from workers.messages import JobStatus, JobView

logger = logging.getLogger(__name__)

MAX_OPEN = 64  # batches that are worked on at a time
_MIN_PAUSE_S, _MAX_PAUSE_S = 0.05, 0.5
_NUM_SUBMITTING = 8  # rows at a time, whose files are decoded meanwhile
_JOB_TTL_S = 86400  # a row's job waits so long to be written down, should no process be there to do so
_WRITTEN_TTL_S = 60  # and is kept so long after that
_PASSING = (QueueFull, QueueUnavailable, PipelineNotServed, StorageUnavailable, TooBusy)
_NOT_STORED = (StorageFull.code, StorageUnavailable.code)  # how a job fails that is made again, later


class Feeder:
    """The task that feeds, once it has the lock."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._store, self._queue = services.batches, services.queue
        self._worked: dict[str, Worked] = {}
        self._backoff, self._away, self._unstored = Backoff(), Backoff(), Backoff()
        self._places = Places(services.settings.batch_queue_length)
        self._num_assured = assured_places(services.settings.max_queue_length)
        self._num_waiting = self._num_running = 0  # of our jobs, when they were last looked at
        self._readers = Readers(services)

    async def run(self) -> None:
        """Feed until this is cancelled."""
        lock = None
        try:
            while lock is None:
                try:
                    lock = await asyncio.to_thread(self._store.try_lock)
                except StorageUnavailable as error:
                    logger.warning("batches: %s", error)
                if lock is None:
                    await asyncio.sleep(_MAX_PAUSE_S)
            pause_s = _MIN_PAUSE_S
            while True:
                has_moved = await self._round()
                pause_s = _MIN_PAUSE_S if has_moved else min(2 * pause_s, _MAX_PAUSE_S)
                await self._pause(pause_s)
        finally:
            await self._readers.close()
            for worked in self._worked.values():
                worked.file.close()
            if lock is not None:
                os.close(lock)

    async def _pause(self, pause_s: float) -> None:
        """Wait, unless this process gets a batch."""
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._services.has_new_batch.wait()

    async def _round(self) -> bool:
        """Look at everything once; return whether anything has changed."""
        self._services.has_new_batch.clear()
        try:
            await self._look_for_batches()
            if not self._away.is_over:
                return False
            has_moved = await self._write_down_ended()
            if self._backoff.is_over and self._unstored.is_over:
                has_moved |= await self._submit_next()
            await tell_ends(self._services)
            self._away.succeeded()
            return has_moved
        except (QueueUnavailable, StorageUnavailable) as error:
            logger.warning("batches wait: %s", error)
        except FileIsGone:
            logger.warning("the file of a batch is gone")  # which is seen at the next look
        except Exception:  # the task must live
            logger.exception("batches could not be worked on")
        self._away.failed()
        return False

    async def _look_for_batches(self) -> None:
        """Open batches that are new, and close those that have ended."""
        for worked in list(self._worked.values()):
            try:
                worked.record = await asyncio.to_thread(worked.file.record)
                is_over = worked.record.status.is_terminal
            except FileIsGone:
                is_over = True
            if is_over:
                self._worked.pop(worked.record.id).file.close()
        known = self._worked.keys() | self._readers.ids()
        if len(known) >= MAX_OPEN:
            return
        fresh = await asyncio.to_thread(self._store.unfinished, known)
        for record in _in_turn(fresh)[: MAX_OPEN - len(known)]:
            if record.started_at is None:
                self._readers.begin(record)
            else:
                await self._begin(record)

    async def _begin(self, record: BatchRecord) -> None:
        """Work on a batch whose rows are read.

        Those that an earlier feeder took are jobs, or are found to be none at the next look.
        """
        try:
            file = await asyncio.to_thread(self._store.open, record.id)
        except BatchNotFound:
            return
        try:
            record, taken = await asyncio.to_thread(lambda: (file.record(), file.running()))
        except BaseException:
            file.close()
            raise
        self._worked[record.id] = Worked(record, file, taken)

    async def _write_down_ended(self) -> bool:
        """Look at all rows that are jobs, and write down those that have ended."""
        self._num_waiting = self._num_running = 0
        has_moved = False
        for worked in list(self._worked.values()):
            numbers = sorted(worked.outstanding)
            statuses = await self._queue.statuses([worked.job_id(number) for number in numbers])
            self._num_waiting += statuses.count(JobStatus.QUEUED)
            self._num_running += statuses.count(JobStatus.RUNNING)
            lost = [number for number, status in zip(numbers, statuses, strict=True) if status is None]
            worked.outstanding.difference_update(lost)
            worked.to_submit += lost
            ended = [n for n, status in zip(numbers, statuses, strict=True) if status and status.is_terminal]
            if worked.record.is_cancelled:
                left = [n for n, status in zip(numbers, statuses, strict=True) if status and n not in ended]
                await self._cancel(worked, left)
            if ended:
                await self._end(worked, ended)
                has_moved = True
        return has_moved

    async def _end(self, worked: Worked, numbers: Sequence[int]) -> None:
        jobs = {job.id: job for job in await self._queue.views([worked.job_id(number) for number in numbers])}
        await self._forget_unstored(worked, jobs)
        await self._forget_unchecked(worked, jobs)
        ends = [end_of_row(n, jobs[worked.job_id(n)]) for n in numbers if worked.job_id(n) in jobs]
        ends.sort(key=lambda end: str(jobs[worked.job_id(end.number)].ended_at))
        await self._write(worked, ends)
        await self._queue.forget_soon(list(jobs), _WRITTEN_TTL_S)

    async def _forget_unstored(self, worked: Worked, jobs: dict[str, JobView]) -> None:
        """Take out jobs whose outputs could not be stored; their rows become jobs again, as of lost ones.

        A worker's disk that is full for a while must not fail the rest of a batch.
        """
        unstored = [job.id for job in jobs.values() if job.error and job.error.code in _NOT_STORED]
        if unstored:
            self._unstored.failed()
            logger.warning("batch_id=%s waits: %d outputs were not stored", worked.record.id, len(unstored))
            await self._queue.forget_soon(unstored, 0)
        elif any(job.status == JobStatus.SUCCEEDED for job in jobs.values()):
            self._unstored.succeeded()
        for job_id in unstored:
            del jobs[job_id]

    async def _forget_unchecked(self, worked: Worked, jobs: dict[str, JobView]) -> None:
        """Take out jobs with outputs that the moderation hook could not check; see ``_forget_unstored``."""
        numbers = [n for n in worked.outstanding if is_unchecked(jobs.get(worked.job_id(n)))]
        again = [worked.job_id(number) for number in numbers if worked.hold_unchecked(number)]
        await self._queue.forget_soon(again, 0)
        for job_id in again:
            del jobs[job_id]

    async def _write(self, worked: Worked, ends: Sequence[RowEnd]) -> None:
        try:
            await asyncio.to_thread(worked.file.end_rows, ends)
        except FileIsGone:
            logger.warning("batch_id=%s is gone", worked.record.id)
        worked.ended({end.number for end in ends})

    async def _cancel(self, worked: Worked, numbers: Sequence[int]) -> None:
        """Cancel jobs, and end the rows that didn't become any."""
        for number in numbers:
            with suppress(JobNotFound):
                await self._queue.cancel(worked.job_id(number))
        if worked.to_submit:
            await self._write(worked, [RowEnd(n, JobStatus.CANCELLED, None) for n in worked.to_submit])

    async def _submit_next(self) -> bool:
        """Fill the places in the queue, each batch getting its share."""
        going_on = [worked for worked in self._worked.values() if not worked.record.is_cancelled]
        needs = [
            Need(w.record.id, w.record.owner, len(w.ready()) + w.num_to_take, len(w.outstanding))
            for w in going_on
        ]
        shares = share(self._places.num_free(self._num_waiting, self._num_running), needs)
        free = asyncio.Semaphore(_NUM_SUBMITTING)
        for worked in going_on:
            num_places = shares.get(worked.record.id, 0)
            if (num_new := num_places - len(worked.ready())) > 0:
                worked.to_submit += await asyncio.to_thread(worked.file.claim, num_new)
            numbers = worked.ready()[:num_places]
            lines = await asyncio.to_thread(worked.file.requests_of, numbers)
            await asyncio.gather(*(self._submit(worked, number, lines[number], free) for number in numbers))
            if worked.waiting != worked.record.waiting:
                await asyncio.to_thread(worked.file.note_waiting, worked.waiting)
        if shares:  # those that have had places come last in the next round
            for batch_id in shares:
                self._worked[batch_id] = self._worked.pop(batch_id)
        return bool(shares)

    async def _submit(self, worked: Worked, number: int, line: bytes, free: asyncio.Semaphore) -> None:
        """Make a row a job; one that can't be has ended, and one that can't be now stays."""
        async with free:
            if not (self._backoff.is_over and worked.may_try(number)):
                return
            try:
                end = await self._made_job(worked, number, line)
                if end is not None:
                    await self._write(worked, [end])
            except PipelineNotServed as error:
                worked.hold_for_pipeline(number, error.pipeline, f"no worker has {error.pipeline!r}")
                return
            except ModerationFailed:
                return
            except _PASSING as error:
                self._backoff.failed()
                logger.info("batch_id=%s waits: %s", worked.record.id, error)
                return
            self._backoff.succeeded()
            if end is None:
                worked.became_job(number)

    async def _made_job(self, worked: Worked, number: int, line: bytes) -> RowEnd | None:
        """Submit a row; return its end where it can't become a job.

        Raises: one of _PASSING; ModerationFailed where that is to be tried again.
        """
        job_id = worked.job_id(number)
        try:
            resolved = await resolve_row(line, job_id, worked.record.owner, self._services)
            num_places_more = self._num_assured if self._num_waiting < self._num_assured else 0
            self._num_waiting += 1  # before others are submitted meanwhile
            try:
                await self._queue.submit(
                    resolved,
                    job_id,
                    owner=worked.record.owner,
                    result_ttl_s=min(_JOB_TTL_S, self._store.ttl_s),
                    num_places_more=num_places_more,
                )
            except BaseException:
                self._num_waiting -= 1
                raise
        except _PASSING:
            raise
        except ModerationFailed as error:
            if worked.hold_unchecked(number):
                raise
            return failed_row(number, error)
        except ServiceError as error:
            return failed_row(number, error)
        except Exception:  # the boundary of a row
            logger.exception("batch_id=%s row %d can't become a job", worked.record.id, number)
            return failed_row(number, InternalError("the row can't become a job; the server's log says more"))
        return None


def _in_turn(records: Sequence[BatchRecord]) -> list[BatchRecord]:
    """Order batches so that API keys take turns, each with its oldest first."""
    by_owner: dict[str, list[BatchRecord]] = {}
    for record in records:
        by_owner.setdefault(record.owner, []).append(record)
    turns = [(turn, each) for own in by_owner.values() for turn, each in enumerate(own)]
    return [record for _, record in sorted(turns, key=lambda each: (each[0], each[1].created_at))]
