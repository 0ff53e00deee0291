"""What sources hold: files, and the pictures in them."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from models.media.base import InvalidMedia
from models.media.pixels import MAX_IMAGE_BYTES


@dataclass(frozen=True)
class File:
    """A file of the sources. num_bytes: None where its place doesn't tell. problem: why it can't be opened.

    open: returns it from its start, to be closed by the caller. Raises: InvalidMedia; BulkError for what
    another try may mend.
    """

    id: str
    num_bytes: int | None
    open: Callable[[], BinaryIO]
    problem: str | None = None


@dataclass(frozen=True)
class Item:
    """A picture of the sources. num_bytes: of its file; of the whole file, where it is a row of a parquet.

    problem: what is wrong with a whole file, or the rest of one, of which this item stands for all pictures.
    read: returns its bytes, and must be called before the next item is asked for.
    Raises: InvalidMedia when there are none, or too many.
    """

    id: str
    num_bytes: int
    read: Callable[[], bytes]
    problem: str | None = None

    @property
    def identity(self) -> bytes:
        """What tells whether it is the same picture, without reading it."""
        return f"{self.id}\0{self.num_bytes}\n".encode()


def unusable(id: str, problem: str) -> Item:
    """Return an item that has no bytes, and says why."""

    def read() -> Any:
        raise InvalidMedia(problem)

    return Item(id, 0, read, problem)


def picture_of(file: File) -> Item:
    """Return the item of a file that is a picture."""

    def read() -> bytes:
        with file.open() as opened:
            if file.num_bytes is not None:
                check_size(file.num_bytes)
            data = read_at_most(opened, MAX_IMAGE_BYTES + 1)
        check_size(len(data))
        if file.num_bytes not in (None, len(data)):
            raise InvalidMedia("changed while it was read")
        return data

    return Item(file.id, file.num_bytes or 0, read)


def read_at_most(file: BinaryIO, num_bytes: int) -> bytes:
    """Return so many bytes, or all that there are.

    Raises: InvalidMedia.
    """
    buffer = io.BytesIO()
    try:
        while buffer.tell() < num_bytes and (data := file.read(num_bytes - buffer.tell())):
            buffer.write(data)
    except OSError as error:
        raise InvalidMedia(f"can't be read: {error.strerror or error}") from error
    return buffer.getvalue()


def check_size(num_bytes: int) -> None:
    """Raises: InvalidMedia when a picture can't have so many bytes."""
    if not num_bytes:
        raise InvalidMedia("is empty")
    if num_bytes > MAX_IMAGE_BYTES:
        raise InvalidMedia(f"at most {MAX_IMAGE_BYTES} bytes, got {num_bytes}")
