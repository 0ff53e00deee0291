"""SQLite files in the data folder: opened in one way, with what goes wrong said in our words."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from workers.errors import StorageFull, StorageUnavailable

_BUSY_S = 30.0  # another process may be writing many rows


_LOST = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


class FileIsGone(Exception):
    """The file isn't there any more, isn't whole, or is another version's."""


def connect(path: Path, mode: Literal["rw", "rwc"]) -> sqlite3.Connection:
    """Open a file; rwc makes it where it is missing.

    What is committed survives the end of this process at any moment. After a power failure the last changes
    may be missing, and the file is whole.

    Raises: FileIsGone; StorageUnavailable, StorageFull.
    """
    with storing():
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=_BUSY_S,
            isolation_level=None,  # transactions are begun by name
            check_same_thread=False,
        )
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection


@contextmanager
def storing() -> Iterator[None]:
    """Say what went wrong in words for whoever runs the service.

    Raises: FileIsGone; StorageUnavailable, StorageFull.
    """
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code in _LOST or "no such table" in str(error) or "no such column" in str(error):
            raise FileIsGone(str(error)) from error
        if code == sqlite3.SQLITE_FULL:
            raise StorageFull("the disk of the batches (SMALTI_DATA_DIR) is full; try again later") from error
        raise StorageUnavailable(
            f"the batches (SMALTI_DATA_DIR) can't be read or written: {error}; this user must be able to"
            " write there, and all API processes must be on this machine"
        ) from error
