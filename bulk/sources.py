"""Where pictures come from: folders, globs, files, tars and parquet, as one sorted stream of items.

The stream is a pure function of what the sources hold: ids are paths relative to the folder that all sources
share, and sorted, so that machines with the same sources see the same rows.
"""

import glob
import hashlib
import os
import stat
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bulk.errors import BulkError
from bulk.parquet_rows import ParquetRows
from models.media.base import InvalidMedia
from models.media.pixels import MAX_IMAGE_BYTES

# Also of pictures that can't be read: a row that says so is better than a picture that is missed.
PICTURE_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic")
)
_TAKEN_SUFFIXES = PICTURE_SUFFIXES | {".tar", ".parquet"}
_TAR_BLOCK = 512


@dataclass(frozen=True)
class Item:
    """A picture of the sources. num_bytes: of its file; of the whole file, where it is a row of a parquet.

    read: returns its bytes, and must be called before the next item is asked for.
    Raises: InvalidMedia when there are none, or too many.
    """

    id: str
    num_bytes: int
    read: Callable[[], bytes]

    @property
    def identity(self) -> bytes:
        """What tells whether it is the same picture, without reading it."""
        return f"{self.id}\0{self.num_bytes}\n".encode()


@dataclass(frozen=True)
class Listing:
    """How many items there are, a digest of their ids and sizes, and how many other files."""

    num_items: int
    digest: str
    num_others: int


class Sources:
    """The sources that a person named.

    column: of parquet files, where several hold pictures. excluded: a folder that is passed over.

    Raises: BulkError when one is not there, or can't be used.
    """

    def __init__(
        self, given: Sequence[str], *, column: str | None = None, excluded: Path | None = None
    ) -> None:
        self.column = column
        self._excluded = None if excluded is None else _absolute(excluded)
        paths = {_absolute(path) for each in given for path in _expanded(each)}
        folders = {path for path in paths if path.is_dir()}
        places = {path for path in paths if folders.isdisjoint(path.parents)}
        self._base = Path(os.path.commonpath([path if path in folders else path.parent for path in places]))
        self._places = sorted(places, key=lambda path: self._id(path) + "/" * (path in folders))
        self._num_others = 0
        self._marks: dict[int, bytes] = {}  # digests of the first so many items, when they were listed

    def list(self, mark_every: int = 8192) -> Listing:
        """Walk over everything once, without reading pictures.

        mark_every: after so many items each time, ``walk_unchanged`` looks whether they are the same.

        Raises: BulkError when there is no picture.
        """
        digest, num_items = hashlib.sha256(), 0
        for item in self.walk():
            num_items += 1
            digest.update(item.identity)
            if num_items % mark_every == 0:
                self._marks[num_items] = digest.digest()
        self._marks[num_items] = digest.digest()
        if not num_items:
            raise BulkError(
                f"the sources hold no file that is taken ({', '.join(sorted(_TAKEN_SUFFIXES))}),"
                f" and {self._num_others} others"
            )
        return Listing(num_items, digest.hexdigest(), self._num_others)

    def walk_unchanged(self) -> Iterator[Item]:
        """Yield all items as ``walk`` does, and the last before each mark only if all were there in ``list``.

        Raises: BulkError when they are others.
        """
        digest = hashlib.sha256()
        for number, item in enumerate(self.walk(), 1):
            digest.update(item.identity)
            mark = self._marks.get(number)
            if mark is not None and mark != digest.digest():
                raise BulkError(
                    "the sources changed while they were encoded: start again, when they are at rest"
                )
            yield item

    def walk(self) -> Iterator[Item]:
        """Yield all items in order; what is not read costs little."""
        self._num_others = 0
        for place in self._places:
            if self._excluded in (place, *place.parents):
                continue
            if place.is_dir():
                yield from self._in_folder(place)
            else:
                yield from self._in_file(place)

    def _id(self, path: Path) -> str:
        """Return the path from the shared folder on, as text that any file can hold."""
        relative = path.relative_to(self._base).as_posix()
        return os.fsencode(relative).decode("utf-8", "backslashreplace")

    def _in_folder(self, folder: Path) -> Iterator[Item]:
        if folder == self._excluded:
            return
        try:
            entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
        except OSError as error:
            yield _unusable(self._id(folder) + "/", f"the folder can't be read: {error.strerror}")
            return
        folders = {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
        for entry in sorted(entries, key=lambda entry: entry.name + "/" * (entry.name in folders)):
            path = folder / entry.name
            if entry.name in folders:
                yield from self._in_folder(path)
            elif _is_dir(entry) or path.suffix.lower() not in _TAKEN_SUFFIXES:
                self._num_others += 1
            else:
                yield from self._in_file(path)

    def _in_file(self, path: Path) -> Iterator[Item]:
        match path.suffix.lower():
            case ".tar":
                yield from _in_tar(path, self._id(path))
            case ".parquet":
                yield from _in_parquet(path, self._id(path), self.column)
            case _:
                try:
                    num_bytes = path.stat().st_size
                except OSError:  # a link to nowhere; reading it says so
                    num_bytes = 0
                yield Item(self._id(path), num_bytes, lambda: _read_file(path))


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; reading it says so
        return False


def _absolute(path: str | Path) -> Path:
    """Return a path without "..", whose links stay as they are."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _expanded(given: str) -> list[str]:
    """Return the paths that a person means.

    Raises: BulkError.
    """
    if os.path.lexists(given):
        return [given]
    found = sorted(glob.glob(given, recursive=True)) if glob.has_magic(given) else []  # noqa: PTH207
    if not found:
        raise BulkError(f"{given}: there is no such file or folder, and nothing that it fits as a pattern")
    return found


def _read_file(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InvalidMedia("is not a regular file")
        _check_size(status.st_size)
        with path.open("rb") as file:
            return file.read(MAX_IMAGE_BYTES)
    except OSError as error:
        raise InvalidMedia(f"can't be read: {error.strerror}") from error


def _in_tar(path: Path, id: str) -> Iterator[Item]:
    """Yield the pictures of a tar in the order of its members; where it breaks, an item that says so."""
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # or it would keep them all
                if member.isdir() or Path(member.name).suffix.lower() not in PICTURE_SUFFIXES:
                    continue
                name = member.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
                if member.isfile():
                    yield Item(f"{id}!{name}", member.size, _reader(tar, member))
                else:
                    yield _unusable(f"{id}!{name}", "is a link, or no file, in the tar")
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)  # of what it took for the end
            if tar.fileobj.read(_TAR_BLOCK).strip(b"\0"):
                yield _unusable(f"{id}!", "the tar is broken from here on")
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        yield _unusable(f"{id}!", f"the tar is broken from here on: {error}")


def _reader(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        _check_size(member.size)
        try:
            file = tar.extractfile(member)
            data = b"" if file is None else file.read()
        except (tarfile.TarError, OSError) as error:
            raise InvalidMedia(f"the tar ends within it: {error}") from error
        if len(data) < member.size:
            raise InvalidMedia("the tar ends within it")
        return data

    return read


def _in_parquet(path: Path, id: str, column: str | None) -> Iterator[Item]:
    try:
        rows = ParquetRows(path, column)
    except InvalidMedia as error:
        yield _unusable(f"{id}#", str(error))
        return
    with rows:
        num_bytes = path.stat().st_size
        for row in range(rows.num_rows):
            yield Item(f"{id}#{row}", num_bytes, _row_reader(rows, row))


def _row_reader(rows: ParquetRows, row: int) -> Callable[[], bytes]:
    def read() -> bytes:
        data = rows.read(row)
        _check_size(len(data))
        return data

    return read


def _check_size(num_bytes: int) -> None:
    if not num_bytes:
        raise InvalidMedia("is empty")
    if num_bytes > MAX_IMAGE_BYTES:
        raise InvalidMedia(f"at most {MAX_IMAGE_BYTES} bytes, got {num_bytes}")


def _unusable(id: str, problem: str) -> Item:
    def read() -> Any:
        raise InvalidMedia(problem)

    return Item(id, 0, read)
