"""Uploads: files that clients send once and then name by their id, in requests and as batches."""

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from workers.errors import ServiceError
from workers.storage import check_writable, make_folders, make_private, open_lock, storing_in, sync_folder

MAX_FILES_PER_KEY = 10_000
FILE_ID = re.compile(r"[0-9a-f]{32}")

_MAX_NAME_CHARS = 255
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,127}/[A-Za-z0-9!#$&^_.+-]{1,127}( *;[ -~]{0,127})?")
_UNKNOWN_MEDIA_TYPE = "application/octet-stream"
_CONTENT, _ABOUT, _NEW, _LOCK = "content", "about.json", ".new", ".lock"
_CHUNK_BYTES = 2**20


class FileNotKnown(ServiceError):
    """No such file, for this client."""

    code = "file_not_found"

    def __init__(self, file_id: str) -> None:
        super().__init__(
            f"there is no file {file_id[:64]!r}, or it has expired; send it with POST /files and use the"
            " id in the answer"
        )


class FileQuotaExceeded(ServiceError):
    """The files of an API key would be too many, or hold too much."""

    code = "file_quota_exceeded"


@dataclass(frozen=True)
class Upload:
    """A file as it is kept. sha256: of its bytes, in hexadecimal. used_at: the last time."""

    id: str
    name: str
    media_type: str
    num_bytes: int
    sha256: str
    created_at: datetime
    used_at: datetime
    path: Path

    def open(self) -> BinaryIO:
        """Return the bytes, open for reading; they stay readable even if the file goes meanwhile.

        Raises: FileNotKnown.
        """
        try:
            return self.path.open("rb")
        except FileNotFoundError:
            raise FileNotKnown(self.id) from None

    def read(self) -> bytes:
        """Return the bytes.

        Raises: FileNotKnown.
        """
        with self.open() as file:
            return file.read()


class FileStore:
    """Files by API key and id: `<folder>/<digest of the key's name>/<id>/content`, and `about.json` beside.

    A file is there whole or not at all: its folder is written under another name, synced, and renamed. Any
    process may call any method. max_bytes_per_key: of all files of one API key together.
    """

    def __init__(self, folder: Path, max_bytes_per_key: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes_per_key

    def check(self) -> None:
        """Try to write.

        Raises: StorageUnavailable when that fails, StorageFull among them; the message names the folder.
        """
        check_writable(self._folder)

    def put(self, owner: str, name: str, media_type: str, source: BinaryIO) -> Upload:
        """Store what ``source`` has from here on, for an API key.

        A name loses its folders and control characters.

        Raises: StorageUnavailable, StorageFull; FileQuotaExceeded.
        """
        folder = self._of_owner(owner)
        make_private(self._folder)
        with storing_in(self._folder):
            make_folders(folder)
            with _locked(folder):  # for one at a time, so that the bound holds
                new = folder / _NEW
                shutil.rmtree(new, ignore_errors=True)  # of a process that was killed
                self._check_room(folder, source)
                try:
                    new.mkdir(0o700)
                    num_bytes, sha256 = _write(new / _CONTENT, source)
                    created_at = time.time()
                    about = {
                        "name": _plain_name(name),
                        "media_type": media_type
                        if _MEDIA_TYPE.fullmatch(media_type)
                        else _UNKNOWN_MEDIA_TYPE,
                        "num_bytes": num_bytes,
                        "sha256": sha256,
                        "created_at": created_at,
                    }
                    _write_text(new / _ABOUT, json.dumps(about))
                    file_id = _new_id(created_at)
                    new.rename(folder / file_id)
                    sync_folder(folder)
                finally:
                    shutil.rmtree(new, ignore_errors=True)
        return self.find(file_id, owner)

    def find(self, file_id: str, owner: str | None) -> Upload:
        """Look up a file of an API key; of any, where owner is None.

        Raises: FileNotKnown.
        """
        return _read(self._path(file_id, owner))

    def use(self, file_id: str, owner: str | None) -> Upload:
        """Look up a file and count this as a use, from which its life begins anew.

        Raises: FileNotKnown.
        """
        path = self._path(file_id, owner)
        try:
            os.utime(path / _CONTENT)
        except FileNotFoundError:
            raise FileNotKnown(file_id) from None
        return _read(path)

    def page(
        self, owner: str, limit: int, after: str | None, *, oldest_first: bool = False
    ) -> tuple[list[Upload], bool]:
        """Return an API key's files, the newest first, and whether there are more.

        after: the id before the first one.
        """
        ids = sorted(_ids(self._of_owner(owner)), reverse=not oldest_first)  # an id begins with its time
        if after is not None:
            ids = [each for each in ids if (each > after if oldest_first else each < after)]
        found = []
        for file_id in ids[:limit]:
            try:
                found.append(self.find(file_id, owner))
            except FileNotKnown:  # gone in this moment
                continue
        return found, len(ids) > limit

    def remove(self, file_id: str, owner: str | None) -> None:
        """Remove a file of an API key; of any, where owner is None.

        Raises: FileNotKnown.
        """
        if not _remove(self._path(file_id, owner)):
            raise FileNotKnown(file_id)

    def sweep(
        self,
        ttl_s: float,
        is_kept: Callable[[str], bool] = lambda file_id: False,
        kept_owners: Collection[str] = (),
    ) -> int:
        """Remove files that were made and last used this long ago; return how many.

        is_kept: says of an id whether something still refers to the file. kept_owners: API keys, of which all
        files are kept.
        """
        num_removed = 0
        kept = {self._of_owner(owner) for owner in kept_owners}
        for folder in set(self._folder.glob("*/")) - kept:
            with _locked(folder):
                shutil.rmtree(folder / _NEW, ignore_errors=True)
            for path in folder.glob(".gone-*"):
                shutil.rmtree(path, ignore_errors=True)
            for file_id in _ids(folder):
                path = folder / file_id
                try:
                    is_old = (path / _CONTENT).stat().st_mtime < time.time() - ttl_s
                except FileNotFoundError:
                    is_old = False
                if is_old and not is_kept(file_id):
                    num_removed += _remove(path)
        return num_removed

    def _of_owner(self, owner: str) -> Path:
        return self._folder / hashlib.sha256(owner.encode()).hexdigest()[:32]

    def _path(self, file_id: str, owner: str | None) -> Path:
        if not FILE_ID.fullmatch(file_id):
            raise FileNotKnown(file_id)
        if owner is not None:
            return self._of_owner(owner) / file_id
        return next(self._folder.glob(f"*/{file_id}"), self._folder / "none" / file_id)

    def _check_room(self, folder: Path, source: BinaryIO) -> None:
        start = source.tell()
        num_bytes = source.seek(0, os.SEEK_END) - start
        source.seek(start)
        sizes = [_num_bytes(folder / file_id) for file_id in _ids(folder)]
        if len(sizes) >= MAX_FILES_PER_KEY:
            raise FileQuotaExceeded(
                f"file: an API key has at most {MAX_FILES_PER_KEY} files; delete some, or let them expire"
            )
        if sum(sizes) + num_bytes > self._max_bytes:
            raise FileQuotaExceeded(
                f"file: the files of an API key hold at most {self._max_bytes} bytes"
                f" (SMALTI_MAX_FILE_BYTES_PER_KEY); there are {sum(sizes)}, and this one has {num_bytes}."
                " Delete some, or let them expire"
            )


def _new_id(created_at: float) -> str:
    """Return an id that sorts by time: 12 digits of milliseconds, then 20 random ones."""
    return f"{int(created_at * 1000):012x}{secrets.token_hex(10)}"


def _plain_name(name: str) -> str:
    last = re.split(r"[/\\]", name)[-1]
    return "".join(filter(str.isprintable, last))[:_MAX_NAME_CHARS] or "file"


def _ids(folder: Path) -> Iterator[str]:
    try:
        names = [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        names = []
    return filter(FILE_ID.fullmatch, names)


def _num_bytes(path: Path) -> int:
    try:
        return (path / _CONTENT).stat().st_size
    except FileNotFoundError:  # gone in this moment
        return 0


def _read(path: Path) -> Upload:
    try:
        about = json.loads((path / _ABOUT).read_bytes())
        last_use = (path / _CONTENT).stat().st_mtime
    except FileNotFoundError:
        raise FileNotKnown(path.name) from None
    created_at = datetime.fromtimestamp(about.pop("created_at"), UTC)
    used_at = max(created_at, datetime.fromtimestamp(last_use, UTC))
    return Upload(id=path.name, path=path / _CONTENT, created_at=created_at, used_at=used_at, **about)


def _remove(path: Path) -> bool:
    """Remove a file's folder, which is gone at once for all others; return whether it was there."""
    gone = path.with_name(f".gone-{path.name}")
    try:
        path.rename(gone)
    except FileNotFoundError:
        return False
    shutil.rmtree(gone, ignore_errors=True)
    return True


def _write(path: Path, source: BinaryIO) -> tuple[int, str]:
    """Write a new file; return how many bytes it has, and their SHA-256."""
    digest, num_bytes = hashlib.sha256(), 0
    with _new_file(path) as file:
        while chunk := source.read(_CHUNK_BYTES):
            file.write(chunk)
            digest.update(chunk)
            num_bytes += len(chunk)
    return num_bytes, digest.hexdigest()


def _write_text(path: Path, text: str) -> None:
    with _new_file(path) as file:
        file.write(text.encode())


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        yield file
        file.flush()
        os.fsync(descriptor)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = open_lock(folder / _LOCK)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
