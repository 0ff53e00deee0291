"""Uploads: whole or not there, of one key, bounded, and gone when nothing needs them any more."""

import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import app.files
from app.files import FileNotKnown, FileQuotaExceeded, FileStore, Upload
from tests.waiting import wait_until
from tests.workers.test_storage import files_of_at_most, mode_of
from workers.errors import StorageFull, StorageUnavailable

MAX_BYTES = 1000
PUTS_FOR_EVER = """
import io, sys, pathlib
from app.files import FileStore
store = FileStore(pathlib.Path(sys.argv[1]), 2**40)
while True:
    store.put("ada", "a", "text/plain", io.BytesIO(b"x" * 2**21))
"""


@pytest.fixture
def store(tmp_path) -> FileStore:
    return FileStore(tmp_path / "files", MAX_BYTES)


def put(store: FileStore, data: bytes = b"a file", owner: str = "ada", name: str = "a.txt") -> Upload:
    return store.put(owner, name, "text/plain", io.BytesIO(data))


def age(upload: Upload) -> None:
    os.utime(upload.path, (1, 1))


def names_below(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.name != ".lock")


def test_what_is_put_is_there_as_it_was_sent(store):
    upload = put(store)
    found = store.find(upload.id, "ada")
    assert found == upload
    assert found.read() == b"a file"
    assert (found.name, found.media_type, found.num_bytes) == ("a.txt", "text/plain", 6)
    assert found.sha256 == hashlib.sha256(b"a file").hexdigest()


@pytest.mark.parametrize("name", ["../../etc/passwd", "C:\\files\\passwd", "pass\r\n\0wd", "/passwd"])
def test_a_name_is_never_a_path_and_fits_a_header(store, name):
    assert put(store, name=name).name == "passwd"
    assert put(store, name="/").name == "file"
    assert len(put(store, name="é" * 5000).name) == 255


@pytest.mark.parametrize(
    "media_type", ["", "text", "text/html\r\nX: y", "text/html; a=\xff", "a/" + "b" * 999]
)
def test_a_media_type_that_is_none_is_told_as_bytes(store, media_type):
    upload = store.put("ada", "a", media_type, io.BytesIO(b"x"))
    assert upload.media_type == "application/octet-stream"


def test_a_file_is_there_for_its_key_alone(store):
    upload = put(store)
    for owner in ("bob", ""):
        for use in (store.find, store.use, store.remove):
            with pytest.raises(FileNotKnown):
                use(upload.id, owner)
        assert store.page(owner, 10, None) == ([], False)
    assert store.find(upload.id, None) == upload


@pytest.mark.parametrize("file_id", ["", "..", "content", "*", "0" * 32, "/etc", "A" * 32])
def test_what_is_no_id_is_not_looked_for(store, file_id):
    put(store)
    for owner in ("ada", None):
        with pytest.raises(FileNotKnown, match="POST /files"):
            store.find(file_id, owner)


def test_pages_have_each_file_once_the_newest_first(store, monkeypatch):
    uploads = []
    for second in range(5):
        monkeypatch.setattr(app.files.time, "time", lambda second=second: 1e9 + second)
        uploads.append(put(store, b"%d" % second).id)
    found, after, has_more = [], None, True
    while has_more:
        page, has_more = store.page("ada", 2, after)
        found += [upload.id for upload in page]
        after = found[-1]
    assert found == uploads[::-1]


def test_the_files_of_a_key_are_bounded_in_bytes(store):
    first = put(store, bytes(600))
    with pytest.raises(FileQuotaExceeded, match=r"at most 1000 bytes .* there are 600, and this one has 401"):
        put(store, bytes(401))
    put(store, bytes(600), owner="bob")
    put(store, bytes(400))
    store.remove(first.id, "ada")
    put(store, bytes(600))


def test_the_bound_holds_for_many_at_once(store):
    def upload() -> None:
        try:
            put(store, bytes(300))
        except FileQuotaExceeded:
            refused.append(1)

    refused: list[int] = []
    threads = [threading.Thread(target=upload) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 5
    assert len(store.page("ada", 10, None)[0]) == 3


def test_the_files_of_a_key_are_bounded_in_number(store, monkeypatch):
    monkeypatch.setattr(app.files, "MAX_FILES_PER_KEY", 2)
    put(store, b"")
    put(store, b"")
    with pytest.raises(FileQuotaExceeded, match="at most 2 files"):
        put(store, b"")


def test_a_full_disk_is_said_and_leaves_nothing(store, tmp_path):
    with files_of_at_most(100), pytest.raises(StorageFull):
        put(store, bytes(500))
    assert len(names_below(tmp_path / "files")) == 1  # the key's folder
    put(store, bytes(500))


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "files").write_text("")
    with pytest.raises(StorageUnavailable, match="SMALTI_DATA_DIR"):
        put(FileStore(tmp_path / "files", 10))


def test_what_is_stored_is_for_this_user_alone(store, tmp_path):
    before = os.umask(0)
    try:
        put(store)
    finally:
        os.umask(before)
    paths = [tmp_path / "files", *(tmp_path / "files").rglob("*")]
    assert {mode_of(path) for path in paths if path.is_dir()} == {0o700}
    assert {mode_of(path) for path in paths if path.is_file()} == {0o600}


def test_a_sweep_removes_what_was_neither_used_nor_is_kept(store, tmp_path):
    gone, kept, used, young = (put(store, b"%d" % i) for i in range(4))
    for upload in (gone, kept, used):
        age(upload)
    store.use(used.id, "ada")
    asked: list[str] = []

    def is_kept(file_id: str) -> bool:
        asked.append(file_id)
        return file_id == kept.id

    assert store.sweep(60, is_kept) == 1
    assert sorted(asked) == sorted([gone.id, kept.id])
    left, _ = store.page("ada", 10, None)
    assert {upload.id for upload in left} == {kept.id, used.id, young.id}
    assert store.sweep(60, kept_owners={"ada"}) == 0
    assert store.sweep(60, kept_owners={"bob"}) == 1


def test_a_sweep_needs_nothing_to_be_there(store):
    assert store.sweep(0) == 0


def test_bytes_that_are_being_read_outlive_their_file(store):
    upload = put(store)
    with upload.open() as file:
        store.remove(upload.id, "ada")
        assert file.read() == b"a file"
    with pytest.raises(FileNotKnown):
        upload.open()


def test_after_a_kill_every_file_is_whole_and_the_rest_is_cleared(tmp_path):
    store, folder = FileStore(tmp_path / "files", 2**40), tmp_path / "files"
    process = subprocess.Popen([sys.executable, "-c", PUTS_FOR_EVER, str(folder)])
    try:
        wait_until(lambda: list(folder.glob("*/[0-9a-f]*/content")))
        wait_until(lambda: list(folder.glob("*/.new/content")))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    uploads, _ = store.page("ada", 1000, None)
    assert uploads
    for upload in uploads:
        assert hashlib.sha256(upload.read()).hexdigest() == upload.sha256
    began = time.monotonic()
    store.sweep(3600)
    assert time.monotonic() - began < 5  # the killed one holds no lock
    assert not [name for name in names_below(folder) if name.startswith(".")]
