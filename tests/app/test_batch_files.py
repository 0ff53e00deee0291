"""Batches as files: what each change leaves behind, in every state in which a process may die."""

import asyncio
import json
import os
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from app.batches.file import RepeatedId
from app.batches.intake import Interrupted, Unreadable, take_in
from app.batches.pace import Places
from app.batches.records import BatchStatus, RowEnd, batch_id_of_job
from app.batches.shares import Need, share
from app.batches.store import BatchNotFound, BatchStore
from app.batches.worked import MAX_CHECKS, MAX_HELD, MAX_UNCHECKED, Worked
from app.idempotency import Idempotency
from workers.errors import IdempotencyKeyReused, QueueFull
from workers.messages import JobStatus
from workers.results import ResultStore

NEVER = threading.Event()


def source(num_rows: int) -> bytes:
    return b"".join(b'{"id": "r%d", "operation": "generate", "body": {}}\n' % n for n in range(num_rows))


@pytest.fixture
def store(tmp_path: Path) -> BatchStore:
    return BatchStore(tmp_path / "batches", ttl_s=60)


def running(store: BatchStore, num_rows: int = 5, owner: str = "") -> str:
    """Return the id of a batch whose rows are read."""
    record, _ = store.create(owner, source(num_rows))
    with store.opened(record.id) as file:
        take_in(file, file.source_chunks(), NEVER)
    return record.id


def test_rows_are_read_once_and_what_they_came_from_goes(store):
    record, is_replay = store.create("ada", source(5))
    assert (record.status, is_replay) == (BatchStatus.QUEUED, False)
    with store.opened(record.id) as file:
        for _ in range(2):  # the second time as after a crash: nothing is left to do
            take_in(file, [source(5)], NEVER)
        now = file.record()
        assert (now.status, now.num_rows, now.num_queued) == (BatchStatus.RUNNING, 5, 5)
        assert json.loads(file.requests_of([3])[3])["id"] == "r2"
        assert list(file.source_chunks()) == []


@pytest.mark.parametrize("problem", [Unreadable, RepeatedId, Interrupted])
def test_what_could_not_be_read_whole_leaves_nothing(store, problem):
    record, _ = store.create("", source(200))
    text, is_ending = source(200), threading.Event()
    match problem:
        case _ if problem is Unreadable:
            text = b"\n\n"
        case _ if problem is RepeatedId:
            text += b'{"id": "r7", "operation": "generate", "body": {}}'
        case _:
            is_ending.set()
    with store.opened(record.id) as file:
        with pytest.raises(problem):
            take_in(file, [text], is_ending)
        assert file.record() == record
        take_in(file, file.source_chunks(), NEVER)
        assert file.record().num_rows == 200


def test_lines_are_found_whatever_the_chunks(store):
    text = b"\xef\xbb\xbf" + source(30).replace(b"\n", b"\r\n") + b"\n \n" + b"x" * 70
    for size in (1, 7, 64, 10_000):
        record, _ = store.create("", b"")
        with store.opened(record.id) as file:
            take_in(file, [text[i : i + size] for i in range(0, len(text), size)], NEVER)
            assert (file.record().num_rows, file.record().num_failed) == (31, 1)
            file.cancel()


def test_a_row_is_taken_once_and_ends_once(store):
    with store.opened(running(store)) as file, store.opened(file.record().id) as other:
        assert (file.claim(2), other.claim(2), other.running()) == ([1, 2], [3, 4], [1, 2, 3, 4])
        file.end_rows([RowEnd(2, JobStatus.SUCCEEDED, "{}"), RowEnd(1, JobStatus.FAILED, "{}")])
        other.end_rows([RowEnd(2, JobStatus.FAILED, "{}")])
        assert [(row.number, row.status, row.sequence) for row in file.ended_rows(0, 9)] == [
            (2, "succeeded", 1),
            (1, "failed", 2),
        ]
        assert [row.number for row in file.ended_rows_in_order(0, 9)] == [1, 2]
        now = file.record()
        assert (now.num_queued, now.num_running, now.num_succeeded, now.num_failed) == (1, 2, 1, 1)
        file.claim(9)
        file.end_rows([RowEnd(number, JobStatus.CANCELLED, None) for number in (3, 4, 5)])
        assert (file.record().status, file.record().num_cancelled) == (BatchStatus.SUCCEEDED, 3)


def test_rows_that_wait_for_a_worker_are_so_many_and_no_more(store):
    async def take_all() -> Worked:
        worked = Worked(file.record(), file, ())
        while taken := file.claim(min(8, worked.num_to_take)):
            worked.to_submit += taken
            for number in taken:
                worked.hold_for_pipeline(number, "other", "no worker has it")
            worked.record = file.record()
        assert worked.ready() == []
        await asyncio.sleep(0.11)
        assert worked.ready() == worked.to_submit  # they are tried again
        worked.became_job(1)
        return worked

    with store.opened(running(store, 300)) as file:
        worked = asyncio.run(take_all())
        assert (len(worked.to_submit), worked.num_to_take) == (MAX_HELD - 1, 1)
        assert worked.waiting == f"{MAX_HELD - 1} rows: no worker has it"
        file.note_waiting(worked.waiting)
        assert file.record().waiting == worked.waiting
        file.cancel()
        file.end_rows([RowEnd(number, JobStatus.CANCELLED, None) for number in file.running()])
        assert file.record().waiting is None


def test_a_row_is_checked_so_often_and_no_more_rows_at_a_time(store):
    async def check() -> None:
        worked = Worked(file.record(), file, ())
        assert [worked.hold_unchecked(1) for _ in range(MAX_CHECKS)] == [True] * (MAX_CHECKS - 1) + [False]
        worked.ended([1])
        for number in file.claim(MAX_UNCHECKED):
            assert worked.num_to_take > 0
            worked.hold_unchecked(number)
        assert worked.num_to_take == 0

    with store.opened(running(store, 300)) as file:
        asyncio.run(check())


def test_a_batch_is_cancelled_in_every_state(store):
    unread, _ = store.create("", source(3))
    assert store.cancel(unread.id).status == BatchStatus.CANCELLED
    with store.opened(unread.id) as file:
        take_in(file, [source(3)], NEVER)  # by a process that had begun to
        assert (file.record().num_rows, file.claim(9)) == (0, [])
    with store.opened(running(store)) as file:
        file.claim(2)
        batch_id = file.record().id
        now = store.cancel(batch_id)
        assert (now.status, now.is_cancelled, now.num_cancelled) == (BatchStatus.RUNNING, True, 3)
        file.end_rows([RowEnd(1, JobStatus.SUCCEEDED, "{}"), RowEnd(2, JobStatus.CANCELLED, None)])
        done = store.cancel(batch_id)
        assert (done.status, done.num_succeeded, done.num_cancelled) == (BatchStatus.CANCELLED, 1, 4)
        assert [row.number for row in file.ended_rows(0, 9)] == [3, 4, 5, 1, 2]


def test_a_batch_that_has_ended_keeps_no_room_for_what_was_sent(store, tmp_path):
    text = source(10) + b" " * 2**20
    unread, _ = store.create("", text)
    store.cancel(unread.id)
    read, _ = store.create("", source(10_000))
    with store.opened(read.id) as file:
        take_in(file, file.source_chunks(), NEVER)
    assert (tmp_path / "batches" / f"{read.id}.db").stat().st_size > 2**20
    store.cancel(read.id)
    sizes = [path.stat().st_size for path in (tmp_path / "batches").iterdir()]
    assert sizes[0] + sizes[1] < 2**20


def test_an_idempotency_key_makes_one_batch(store, tmp_path):
    key = Idempotency("ada", "night-7", "digest")
    made, is_replay = store.create("ada", source(1), idempotency=key)
    other_process = BatchStore(tmp_path / "batches", ttl_s=60)
    again, is_replayed = other_process.create("ada", source(1), idempotency=key)
    assert (made.id, is_replay, is_replayed) == (again.id, False, True)
    with pytest.raises(IdempotencyKeyReused, match=made.id):
        store.create("ada", source(2), idempotency=Idempotency("ada", "night-7", "another"))
    bobs, _ = store.create("bob", source(1), idempotency=Idempotency("bob", "night-7", "digest"))
    assert bobs.id != made.id


def test_a_key_makes_a_new_batch_after_the_old_one_in_the_eyes_of_every_process(tmp_path):
    one, other = (BatchStore(tmp_path / "batches", ttl_s=1) for _ in range(2))
    made, _ = one.create("ada", source(1), idempotency=Idempotency("ada", "night-7", "first"))
    one.cancel(made.id)
    assert other.get(made.id).status == BatchStatus.CANCELLED  # which it keeps in memory
    time.sleep(1.1)
    assert one.sweep() == 1
    anew, is_replay = one.create("ada", source(1), idempotency=Idempotency("ada", "night-7", "second"))
    assert (anew.id, is_replay) == (made.id, False)
    assert other.sweep() == 0
    assert [record.id for record in other.unfinished()] == [made.id]
    assert other.get(made.id).status == BatchStatus.QUEUED


def test_a_key_may_have_so_many_batches_under_way(tmp_path):
    store = BatchStore(tmp_path / "batches", ttl_s=60, max_unfinished=3)
    ids = [store.create("ada", source(1))[0].id for _ in range(3)]
    with pytest.raises(QueueFull, match="batches have not ended"):
        store.create("ada", source(1))
    store.create("bob", source(1))
    store.cancel(ids[0])
    store.create("ada", source(1))


def test_batches_and_their_outputs_go_when_their_time_is_over(store, tmp_path):
    kept, gone, under_way = (running(store, 1) for _ in range(3))
    results = ResultStore(tmp_path / "results")
    for batch_id in (kept, gone, under_way):
        job_id = store.get(batch_id).job_id(1)
        results.put(job_id, 0, b"png", "png")
        os.utime(tmp_path / "results" / batch_id[:2] / job_id, (0, 0))
    for batch_id in (kept, gone):
        store.cancel(batch_id)
    with sqlite3.connect(tmp_path / "batches" / f"{gone}.db") as connection:
        connection.execute("UPDATE batch SET ended_at = ?", (time.time() - 61,))
    connection.close()
    assert store.sweep() == 1
    assert store.ids() == {kept, under_way}
    assert results.sweep(1, lambda job_id: batch_id_of_job(job_id) in store.ids()) == 1
    assert results.read(store.get(kept).job_id(1), 0).data == b"png"
    with pytest.raises(BatchNotFound):
        store.get(gone)
    assert sorted(path.name for path in (tmp_path / "batches").iterdir()) == sorted(
        f"{each}.db" for each in (kept, under_way)
    )


def test_uploads_are_kept_for_a_batch_from_when_it_is_accepted(store):
    upload = "0" * 32
    line = b'{"id": "a", "operation": "encode", "body": {"source": {"file": "%s"}}}' % upload.encode()
    store.create("bob", None, file="1" * 32)
    record, _ = store.create("ada", line)
    assert (store.owners_of_unread(), store.files_in_use()) == ({"ada", "bob"}, {"1" * 32})
    with store.opened(record.id) as file:
        take_in(file, file.source_chunks(), NEVER)
    assert (store.owners_of_unread(), store.files_in_use()) == ({"bob"}, {upload, "1" * 32})
    store.cancel(record.id)
    assert store.files_in_use() == {"1" * 32}


def test_the_oldest_batches_of_a_key_go_while_all_hold_too_much(tmp_path):
    store = BatchStore(tmp_path / "batches", ttl_s=60, max_bytes_per_key=100)

    def ended(owner: str, num_bytes: int) -> str:
        batch_id = running(store, 2, owner)
        with store.opened(batch_id) as file:
            file.end_rows([RowEnd(n, JobStatus.SUCCEEDED, "{}", num_bytes // 2) for n in file.claim(2)])
            assert file.record().num_bytes == num_bytes
        return batch_id

    def left() -> set[str]:
        return {record.id for record in store.all()}

    under_way = running(store, 2, "ada")
    ada = [ended("ada", num_bytes) for num_bytes in (10, 60, 40)]
    bob = [ended("bob", num_bytes) for num_bytes in (10, 1000)]
    assert store.sweep() == 2
    assert left() == {under_way, *ada[1:], bob[1]}
    bob.append(ended("bob", 4))
    assert store.sweep() == 1
    assert left() == {under_way, *ada[1:], bob[2]}


def test_what_a_killed_process_left_half_made_is_no_batch_and_goes(store, tmp_path):
    running(store)
    half = tmp_path / "batches" / ".new-0123"
    half.write_bytes(b"SQLite format 3\0")
    (tmp_path / "batches" / f"{'0' * 20}.db").write_bytes(b"")  # which none of ours could leave
    assert len(store.all()) == 1
    os.utime(half, (0, 0))
    store.sweep()
    assert not half.exists()


def test_a_batch_of_another_version_stops_no_other(store, tmp_path):
    older, whole = running(store), running(store)
    with sqlite3.connect(tmp_path / "batches" / f"{older}.db") as connection:
        connection.execute("ALTER TABLE batch DROP COLUMN waiting")
    connection.close()
    assert [record.id for record in store.unfinished()] == [whole]
    with pytest.raises(BatchNotFound):
        store.get(older)


def test_one_process_has_the_lock_and_loses_it_with_its_end(store):
    lock = store.try_lock()
    assert lock is not None
    assert store.try_lock() is None
    os.close(lock)
    other = store.try_lock()
    assert other is not None
    os.close(other)


def test_keys_come_to_have_equally_many_places_and_so_do_the_batches_of_a_key():
    def need(batch_id: str, owner: str, num_waiting: int, num_outstanding: int = 0) -> Need:
        return Need(batch_id, owner, num_waiting, num_outstanding)

    assert share(8, [need("a", "ada", 100), need("b", "ada", 100), need("c", "bob", 100)]) == {
        "a": 2,
        "b": 2,
        "c": 4,
    }
    assert share(8, [need("large", "ada", 10**5, 8), need("small", "ada", 3)]) == {"small": 3, "large": 5}
    assert share(8, [need("a", "ada", 100, 8), need("b", "bob", 100)]) == {"b": 8}
    assert share(0, [need("a", "ada", 1)]) == share(-3, [need("a", "ada", 1)]) == share(5, []) == {}


def test_as_many_rows_wait_as_are_taken_in_time():
    places = Places(128)
    assert places.num_free(0, 0) == 16  # none waits: perhaps too few did
    assert [places.num_free(0, 32) for _ in range(4)] == [32, 64, 128, 128]
    num_waiting = 128
    for _ in range(500):  # a slow worker takes one at each look: slowly fewer wait
        num_waiting += places.num_free(num_waiting, 4) - 1
    assert 7 <= num_waiting <= 16
    assert places.num_free(8, 32) == 24  # at least as many as run
    assert places.num_free(200, 500) == 0


def test_a_batch_that_has_the_id_of_one_that_expired_has_other_jobs(tmp_path):
    """Or the first outputs, where they are not swept yet, would stand for those of other rows."""
    store = BatchStore(tmp_path / "batches", ttl_s=0)
    first, _ = store.create("ada", source(1), idempotency=Idempotency("ada", "key", "digest"))
    store.cancel(first.id)
    with sqlite3.connect(tmp_path / "batches" / f"{first.id}.db") as connection:
        connection.execute("UPDATE batch SET ended_at = ?", (time.time() - 1,))
    connection.close()
    store.sweep()
    time.sleep(max(0.0, int(first.created_at) + 1 - time.time()))
    second, is_replay = store.create("ada", source(2), idempotency=Idempotency("ada", "key", "other"))
    assert (second.id, is_replay) == (first.id, False)
    assert second.job_id(1) != first.job_id(1)
    assert batch_id_of_job(second.job_id(1)) == second.id
