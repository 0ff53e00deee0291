"""Files that came in: stored once, kept while a job refers to them, read by workers."""

import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from workers.blobs import BlobStore
from workers.errors import InternalError
from workers.messages import BlobReference

DATA, OTHER = b"a file", b"another file"
SHA256 = hashlib.sha256(DATA).hexdigest()
DAY_S = 86400


@pytest.fixture
def blobs(tmp_path):
    return BlobStore(tmp_path / "blobs")


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("blobs/*/*"))


def age(folder: Path, *names: str) -> None:
    for name in names:
        os.utime(folder / "blobs" / name[:2] / name, (1, 1))


def test_what_is_put_is_read_and_kept_once(blobs, tmp_path):
    reference = blobs.put(DATA, "image/png")

    assert reference == BlobReference(sha256=SHA256, media_type="image/png")
    assert blobs.put(DATA, "image/png") == reference
    assert blobs.read(reference) == DATA
    assert files_in(tmp_path) == [SHA256]


def test_a_missing_blob_is_a_service_error(blobs):
    with pytest.raises(InternalError, match="send the request again"):
        blobs.read(BlobReference(sha256="0" * 64, media_type="image/png"))


def test_sweep_removes_what_is_old_and_not_referred_to(blobs, tmp_path):
    kept, gone, young = (blobs.put(data, "image/png").sha256 for data in (DATA, OTHER, b"third"))
    age(tmp_path, kept, gone)
    asked: list[str] = []

    def is_referenced(sha256s):
        asked.extend(sha256s)
        return [sha256 == kept for sha256 in sha256s]

    assert blobs.sweep(is_referenced, older_than_s=600) == 1
    assert sorted(asked) == sorted([kept, gone])
    assert files_in(tmp_path) == sorted([kept, young])


def test_a_file_that_is_put_again_counts_as_new(blobs, tmp_path):
    blobs.put(DATA, "image/png")
    age(tmp_path, SHA256)
    blobs.put(DATA, "image/png")

    assert blobs.sweep(lambda sha256s: [False] * len(sha256s), older_than_s=600) == 0


def test_a_put_while_the_sweep_asks_keeps_the_file(blobs, tmp_path):
    blobs.put(DATA, "image/png")
    age(tmp_path, SHA256)

    def is_referenced(sha256s):
        blobs.put(DATA, "image/png")
        return [False]

    assert blobs.sweep(is_referenced, older_than_s=600) == 0
    assert files_in(tmp_path) == [SHA256]


def test_puts_and_sweeps_at_once_lose_no_file_that_was_just_put(blobs, tmp_path):
    ends_at = time.monotonic() + 0.5
    reference = blobs.put(DATA, "image/png")

    def sweep() -> None:
        while time.monotonic() < ends_at:
            try:
                age(tmp_path, SHA256)
            except FileNotFoundError:
                continue
            BlobStore(tmp_path / "blobs").sweep(lambda sha256s: [False] * len(sha256s), DAY_S)

    sweeping = threading.Thread(target=sweep)
    sweeping.start()
    while time.monotonic() < ends_at:
        assert blobs.put(DATA, "image/png") == reference
    sweeping.join()
    blobs.put(DATA, "image/png")
    assert blobs.read(reference) == DATA


def test_sweep_needs_nothing_to_be_there(blobs):
    assert blobs.sweep(lambda sha256s: pytest.fail("nothing to ask"), older_than_s=0) == 0
