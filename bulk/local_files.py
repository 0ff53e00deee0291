"""Files of this machine that a person named: by paths, folders and patterns, in sorted order."""

import glob
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from bulk.errors import BulkError
from bulk.items import File
from models.media.base import InvalidMedia


class LocalFiles:
    """The files that are named, or in folders that are named. excluded: a folder that is passed over.

    takes: whether a file in a folder is wanted, by its name; the others are counted.

    Raises: BulkError when one is not there.
    """

    def __init__(self, given: Sequence[str], takes: Callable[[str], bool], excluded: Path | None) -> None:
        self._takes = takes
        self._excluded = None if excluded is None else _absolute(excluded)
        self.num_others = 0
        paths = {_absolute(path) for each in given for path in _expanded(each)}
        folders = {path for path in paths if path.is_dir()}
        places = {path for path in paths if folders.isdisjoint(path.parents)}
        self._base = Path(os.path.commonpath([path if path in folders else path.parent for path in places]))
        self._places = sorted(places, key=lambda path: self._id(path) + "/" * (path in folders))

    def walk(self) -> Iterator[File]:
        """Yield all files in the order of their ids."""
        self.num_others = 0
        for place in self._places:
            if self._excluded in (place, *place.parents):
                continue
            if place.is_dir():
                yield from self._in_folder(place)
            else:
                yield self._file(place)

    def _id(self, path: Path) -> str:
        """Return the path from the shared folder on, as text that any file can hold; no two have the same."""
        relative = path.relative_to(self._base).as_posix()
        return os.fsencode(relative).replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")

    def _in_folder(self, folder: Path) -> Iterator[File]:
        if folder == self._excluded:
            return
        try:
            with os.scandir(folder) as scanned:
                entries = [entry for entry in scanned if not entry.name.startswith(".")]
        except OSError as error:
            problem = f"the folder can't be read: {error.strerror}"
            yield File(self._id(folder) + "/", 0, lambda: open_regular(folder), problem)
            return
        folders = {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
        for entry in sorted(entries, key=lambda entry: entry.name + "/" * (entry.name in folders)):
            path = folder / entry.name
            if entry.name in folders:
                yield from self._in_folder(path)
            elif _is_dir(entry) or not self._takes(entry.name):
                self.num_others += 1
            else:
                yield self._file(path)

    def _file(self, path: Path) -> File:
        try:
            num_bytes = path.stat().st_size
        except OSError:  # a link to nowhere; opening it says so
            num_bytes = 0
        return File(self._id(path), num_bytes, lambda: open_regular(path))


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, without waiting for whoever writes into it, as opening a FIFO does.

    Raises: InvalidMedia when it is not a regular file, or can't be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InvalidMedia("is not a regular file")
        opened = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):  # it became another in between
            opened.close()
            raise InvalidMedia("is not a regular file")
        return opened
    except OSError as error:
        raise InvalidMedia(f"can't be read: {error.strerror}") from error


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; reading it says so
        return False


def _absolute(path: str | Path) -> Path:
    """Return a path without "..", whose links stay as they are."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _expanded(given: str) -> list[Path]:
    """Return the paths that a person means.

    Raises: BulkError.
    """
    try:
        if os.path.lexists(given):
            return [Path(given)]
        found = _fitting(Path(given)) if glob.has_magic(given) else []
    except ValueError as error:
        raise BulkError(f"{given!r:.200} can't be a path or a pattern: {error}") from error
    if not found:
        raise BulkError(f"{given}: there is no such file or folder, and nothing that it fits as a pattern")
    return found


def _fitting(pattern: Path) -> list[Path]:
    """Return what a pattern fits: hidden files only if it has a part that begins with a dot.

    Links to folders are not followed by ``**``: with two that lead upward, the ways double at every step.
    """
    parts = pattern.parts
    first = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    base, asked = Path(*parts[:first]), parts[first:]
    takes_hidden = any(part.startswith(".") for part in asked)
    return [
        path
        for path in sorted(base.glob("/".join(asked)))
        if takes_hidden or not any(part.startswith(".") for part in path.parts[len(base.parts) :])
    ]
