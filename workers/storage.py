"""The data folder: private to one user, and whatever can't be stored in it said in one way."""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workers.errors import NotPrivate, StorageFull, StorageUnavailable

DATA_DIR = "SMALTI_DATA_DIR"  # the setting that names most folders
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PRIVATE = 0o700
_CHECK_BYTES = 4096  # an empty file fits on a full disk


@contextmanager
def storing_in(folder: Path, variable: str = DATA_DIR) -> Iterator[None]:
    """Say what went wrong in a folder that a setting names in words for whoever runs the service.

    Raises: StorageFull, StorageUnavailable.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull(f"the disk of {folder} ({variable}) is full; try again later") from error
        what = f"the folder {folder} ({variable}) can't be written: {error.strerror}"
        raise StorageUnavailable(f"{what}. Make it writable for this user, or name another") from error


def make_private(folder: Path, variable: str = DATA_DIR) -> None:
    """Make a folder that only this user can enter, or narrow one that is there to that.

    One that belongs to root is taken as it is: container platforms mount such.

    Raises: StorageUnavailable when it can't be made; NotPrivate when it is another user's.
    """
    with storing_in(folder, variable):
        make_folders(folder)
        status = folder.stat()
        user = os.geteuid()
        if status.st_uid not in (user, 0):
            raise NotPrivate(
                f"the folder {folder} ({variable}) belongs to user {status.st_uid}, who could read and"
                f" change what user {user} keeps in it; name another"
            )
        if status.st_uid == user and stat.S_IMODE(status.st_mode) & ~_PRIVATE:
            if status.st_mode & stat.S_ISVTX:
                raise NotPrivate(f"the folder {folder} ({variable}) is for all users; name one in it")
            folder.chmod(_PRIVATE)


def check_writable(folder: Path, variable: str = DATA_DIR) -> None:
    """Write a file to a folder and remove it; nothing is synced.

    Raises: StorageFull, StorageUnavailable.
    """
    make_private(folder, variable)
    with storing_in(folder, variable):
        path = folder / f".{secrets.token_hex(8)}"
        try:
            write_new(path, bytes(_CHECK_BYTES))
        finally:
            path.unlink(missing_ok=True)


def make_folders(folder: Path) -> None:
    """Make a folder, and those above it that are missing, for this user alone.

    Raises: OSError.
    """
    try:
        folder.mkdir(_PRIVATE)
    except FileExistsError:
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None
    except FileNotFoundError:
        make_folders(folder.parent)
        folder.mkdir(_PRIVATE, exist_ok=True)


def write_new(path: Path, data: bytes) -> None:
    """Write a file that must not be there yet, for this user alone.

    Raises: OSError.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def sync_folder(folder: Path) -> None:
    """Have what was renamed or linked in a folder survive the machine.

    Raises: OSError.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_lock(path: Path) -> int:
    """Return the descriptor of a file to lock, made for this user alone where it is missing.

    Raises: OSError.
    """
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
