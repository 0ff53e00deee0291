"""The data folder: private, checked by writing, and said by name where it can't be used."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from workers.blobs import BlobStore
from workers.errors import NotPrivate, StorageFull, StorageUnavailable
from workers.results import ResultStore
from workers.storage import make_private

JOB = "0123456789abcdef" * 2
STORES = {
    ResultStore: (
        lambda store: store.put(JOB, 0, b"a file" * 1000, "png"),
        lambda store: store.put_codes(JOB, [[[1, 2]] * 1000]),
    ),
    BlobStore: (lambda store: store.put(b"a file" * 1000, "image/png"),),
}
kinds = pytest.mark.parametrize("kind", STORES)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder to another user")
needs_ordinary_user = pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")


def uses(kind):
    return (kind.check, *STORES[kind])


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """As on a full disk: the system refuses to make a file longer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@kinds
def test_what_is_stored_is_for_this_user_alone(kind, tmp_path):
    before = os.umask(0)
    try:
        for use in uses(kind):
            use(kind(tmp_path / "new" / "data"))
    finally:
        os.umask(before)
    assert {mode_of(path) for path in tmp_path.rglob("*") if path.is_dir()} == {0o700}
    assert {mode_of(path) for path in tmp_path.rglob("*") if path.is_file()} == {0o600}


@kinds
def test_a_check_leaves_nothing_behind(kind, tmp_path):
    kind(tmp_path).check()
    assert list(tmp_path.iterdir()) == []


@kinds
def test_a_file_where_the_folder_should_be_is_named_with_its_variable(kind, tmp_path):
    (tmp_path / "data").write_bytes(b"")
    for use in uses(kind):
        for folder in (tmp_path / "data", tmp_path / "data" / "results"):
            with pytest.raises(StorageUnavailable) as refused:
                use(kind(folder))
            assert not isinstance(refused.value, StorageFull)
            assert str(refused.value).startswith(
                f"the folder {folder} (SMALTI_DATA_DIR) can't be written: Not a directory."
            )


@needs_ordinary_user
@kinds
def test_a_folder_that_may_not_be_written_is_named(kind, tmp_path):
    (tmp_path / "data").mkdir(0o500)
    for use in uses(kind):
        with pytest.raises(
            StorageUnavailable, match=r"\(SMALTI_DATA_DIR\) can't be written: Permission denied"
        ):
            use(kind(tmp_path / "data" / "results"))


@kinds
def test_a_full_disk_is_told_apart_and_leaves_nothing(kind, tmp_path):
    for use in uses(kind):
        with files_of_at_most(1000), pytest.raises(StorageFull, match=r"\(SMALTI_DATA_DIR\) is full"):
            use(kind(tmp_path))
        assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]


def test_a_wider_folder_is_narrowed(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir(0o755)
    make_private(folder)
    assert mode_of(folder) == 0o700


def test_a_folder_for_all_users_is_refused_and_left_as_it_is(tmp_path):
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    with pytest.raises(NotPrivate, match="is for all users"):
        make_private(folder)
    assert mode_of(folder) == 0o777


@needs_root
@kinds
def test_another_users_folder_is_refused(kind, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    os.chown(folder, 54321, -1)
    for use in uses(kind):
        with pytest.raises(NotPrivate, match="belongs to user 54321"):
            use(kind(folder))
