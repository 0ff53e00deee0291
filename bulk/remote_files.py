"""Files of a store elsewhere that a person named by addresses, such as s3://bucket/folder, by fsspec."""

import io
import posixpath
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, TypeVar, cast

from bulk.errors import BulkError
from bulk.items import File
from models.media.base import InvalidMedia

Value = TypeVar("Value")

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_LOCAL = "file://"
_WEB = ("http://", "https://")
_PAUSES_S = (1.0, 4.0)  # before another try


def is_address(given: str) -> bool:
    """Whether it names something elsewhere."""
    return _ADDRESS.match(given) is not None and not given.startswith(_LOCAL)


def without_scheme(given: str) -> str:
    """Return the path that ``file://`` names, and anything else as it is."""
    return given.removeprefix(_LOCAL)


class RemoteFiles:
    """The files that are named, or in folders that are named; all in one store.

    takes: whether a file in a folder is wanted, by its name; the others are counted.

    Raises: BulkError when one is not there, or the store can't be reached.
    """

    def __init__(self, given: Sequence[str], takes: Callable[[str], bool]) -> None:
        self._takes = takes
        self.num_others = 0
        stores = [_store_of(address) for address in given]
        self._store = stores[0][0]
        if any(store is not self._store for store, _ in stores):
            raise BulkError("the sources are in several stores: encode them one after the other")
        self._places: dict[str, dict[str, Any] | None] = {}  # with what is known of a file; None is a folder
        for address, (_, path) in zip(given, stores, strict=True):
            self._places |= self._expanded(address, path)
        folders = {path for path, info in self._places.items() if info is None}
        shared = [_parts(path) if path in folders else _parts(path)[:-1] for path in self._places]
        self._num_shared = len(posixpath.commonprefix(shared))

    def walk(self) -> Iterator[File]:
        """Yield all files in the order of their ids."""
        self.num_others = 0
        found: dict[str, dict[str, Any]] = {}
        for place, info in self._places.items():
            if info is not None:
                found[place] = info
                continue
            for path, below in _tried(place, lambda: self._store.find(place, detail=True)).items():  # noqa: B023
                inner = _parts(path)[len(_parts(place)) :]
                if any(part.startswith(".") for part in inner):
                    continue
                if inner and self._takes(inner[-1]):
                    found[path] = below
                else:
                    self.num_others += 1
        for id, path in sorted((self._id(path), path) for path in found):
            yield File(id, found[path].get("size"), lambda path=path: self._open(path))  # type: ignore[misc]

    def _id(self, path: str) -> str:
        return "/".join(_parts(path)[self._num_shared :])

    def _expanded(self, address: str, path: str) -> dict[str, dict[str, Any] | None]:
        if "*" in path:
            found = _tried(address, lambda: self._store.glob(path, detail=True))
        else:
            info = _tried(address, lambda: self._store.info(path), is_needed=True)
            found = {path: info}
        if not found:
            raise BulkError(f"{_shown(address)}: there is nothing that it fits as a pattern")
        return {
            path.rstrip("/"): None if info.get("type") == "directory" else info
            for path, info in found.items()
        }

    def _open(self, path: str) -> BinaryIO:
        opened = _tried(path, lambda: self._store.open(path, "rb"))
        return cast(BinaryIO, _Reading(path, opened))


class _Reading(io.RawIOBase):
    """A file of a store; what fails for a time is tried again. Raises: BulkError when it goes on to fail."""

    def __init__(self, path: str, opened: Any) -> None:
        self._path = path
        self._opened = opened

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = _tried(self._path, lambda: self._opened.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        try:
            return int(self._opened.seek(position, whence))
        except ValueError as error:  # a stream that can't
            raise InvalidMedia(
                "its server gives it from front to back only: put it on this machine"
            ) from error

    def tell(self) -> int:
        return int(self._opened.tell())

    def close(self) -> None:
        if not self.closed:
            self._opened.close()
        super().close()


def _store_of(address: str) -> tuple[Any, str]:
    """Return the store of an address, and the path in it.

    Raises: BulkError.
    """
    try:
        from fsspec.core import url_to_fs
    except ModuleNotFoundError as error:
        raise BulkError(f"{_shown(address)}: addresses need fsspec: pip install 'smalti[fsspec]'") from error
    try:
        store, path = url_to_fs(address)
    except ImportError as error:
        raise BulkError(f"{_shown(address)}: {error}, as in pip install 'smalti[fsspec]'") from error
    except ValueError as error:
        raise BulkError(f"{_shown(address)}: {error}") from error
    return store, path


def _tried(path: str, call: Callable[[], Value], *, is_needed: bool = False) -> Value:
    """Return what a store answers, which is asked again where it fails.

    Raises: InvalidMedia when it has no such file, or gives it to nobody (BulkError where it is needed);
    BulkError when it fails again and again: a picture is not bad because a network was.
    """
    for pause_s in (*_PAUSES_S, None):
        try:
            return call()
        except (InvalidMedia, BulkError):
            raise
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            told = "is not there" if isinstance(error, FileNotFoundError) else "may not be read"
            if is_needed:
                raise BulkError(f"{_shown(path)}: {told}") from error
            raise InvalidMedia(told) from error
        except Exception as error:  # stores raise whatever their libraries do
            if pause_s is None:
                kind = type(error).__name__
                raise BulkError(
                    f"{_shown(path)} can't be read now: {kind}: {error}. Start again later, to go on"
                ) from error
            time.sleep(pause_s)
    raise AssertionError


def _parts(path: str) -> list[str]:
    """Return the parts of a path; of an address of the web without its query, which may be a key."""
    return (_plain(path) if path.startswith(_WEB) else path).split("/")


def _plain(address: str) -> str:
    return re.split(r"[?#]", address, maxsplit=1)[0]


def _shown(address: str) -> str:
    """Return an address without what may be a secret in it."""
    return re.sub(r"//[^/@]*@", "//", _plain(address))


def is_secret(given: str) -> bool:
    """Whether an address may hold a key, and must not be written down."""
    return is_address(given) and _shown(given) != given
