"""Pictures in a tar, read from front to back, packed or not; memory stays within bounds."""

import bz2
import gzip
import hashlib
import io
import lzma
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO
from zlib import error as ZlibError

from bulk.arrow import pyarrow
from bulk.items import File, Item, check_size, unusable
from bulk.suffixes import PICTURE_SUFFIXES
from models.media.base import InvalidMedia

_MAX_READ_BYTES = 16 * 2**20  # at once: a picture, or a header of tar that goes over several blocks
_PIECE_BYTES = 2**18
_LZMA_MEMORY_BYTES = 256 * 2**20
# What a packed tar may unpack to: pictures don't get smaller by it, and a bomb a thousand times.
_MAX_UNPACKED_RATIO = 100
_UNPACKED_FREE_BYTES = 64 * 2**20
# What the readers of packed files raise on those that are broken; tarfile's own are among them.
_BROKEN = (tarfile.TarError, OSError, EOFError, ValueError, ZlibError, lzma.LZMAError)


def in_tar(file: File) -> Iterator[Item]:
    """Yield the pictures of a tar in the order of its members; where it breaks, an item that says so.

    The second member of a name is told apart by ``#2``, and so on.
    """
    try:
        with file.open() as packed, _unpacked(packed, file.id) as data:
            forward = _Forward(data, packed)
            yield from _members(forward, file.id)
            if forward.last.strip(b"\0"):  # what it took for the end
                yield unusable(f"{file.id}!", "the tar is broken from here on")
    except InvalidMedia as error:
        yield unusable(f"{file.id}!", str(error))
    except _BROKEN as error:
        told = getattr(error, "strerror", None) or str(error)
        yield unusable(f"{file.id}!", f"the tar is broken from here on: {told}")


def _members(forward: "_Forward", id: str) -> Iterator[Item]:
    numbers: dict[bytes, int] = {}
    with tarfile.open(fileobj=forward, mode="r:") as tar:  # type: ignore[call-overload]
        while (member := tar.next()) is not None:
            tar.members = []  # or it would keep them all
            if member.isdir() or Path(member.name).suffix.lower() not in PICTURE_SUFFIXES:
                continue
            name = member.name.encode("utf-8", "surrogateescape").replace(b"\\", b"\\\\")
            key = hashlib.blake2b(name, digest_size=8).digest()
            number = numbers[key] = numbers.get(key, 0) + 1
            item_id = f"{id}!{name.decode('utf-8', 'backslashreplace')}" + f"#{number}" * (number > 1)
            if member.isfile():
                yield Item(item_id, member.size, _reader(tar, member))
            else:
                yield unusable(item_id, "is a link, or no file, in the tar")


def _reader(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        check_size(member.size)
        try:
            opened = tar.extractfile(member)
            data = b"" if opened is None else opened.read()
        except _BROKEN as error:
            raise InvalidMedia(f"the tar ends within it: {error}") from error
        if len(data) < member.size:
            raise InvalidMedia("the tar ends within it")
        return data

    return read


class _Forward:
    """A file as tarfile reads it, forward only. last: what was read last.

    Raises: tarfile.ReadError when more is asked for than a tar of pictures needs.
    """

    def __init__(self, data: BinaryIO, packed: BinaryIO) -> None:
        self._data = data
        self._packed = packed
        self._position = 0
        self._can_skip = data is packed and isinstance(data, io.BufferedReader)
        self.last = b""

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        if self._can_skip:
            self._data.seek(position)
            self._position = position
        while self._position < position:
            if not self.read(min(_PIECE_BYTES, position - self._position)):
                return
        if position < self._position:
            raise tarfile.ReadError("it leads back to where it was")

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_READ_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        buffer = io.BytesIO()
        while buffer.tell() < size and (piece := self._data.read(size - buffer.tell())):
            buffer.write(piece)
        self.last = buffer.getvalue()
        self._position += len(self.last)
        if self._position > _MAX_UNPACKED_RATIO * self._packed.tell() + _UNPACKED_FREE_BYTES:
            raise tarfile.ReadError(f"it unpacks to more than {_MAX_UNPACKED_RATIO} times its bytes")
        return self.last


class _Unpacking(io.RawIOBase):
    """What a packed file holds, stream behind stream, by the decompressors of bz2 and lzma."""

    def __init__(self, packed: BinaryIO, decompressor: Callable[[], Any]) -> None:
        self._packed = packed
        self._start = decompressor
        self._decompressor = decompressor()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            data = b""
            if self._decompressor.eof:
                data = self._decompressor.unused_data.lstrip(b"\0") or self._packed.read(_PIECE_BYTES)
                if not data.strip(b"\0"):
                    return 0
                self._decompressor = self._start()
            elif self._decompressor.needs_input and not (data := self._packed.read(_PIECE_BYTES)):
                raise EOFError("it ends too early")
            unpacked = self._decompressor.decompress(data, len(buffer))
            if unpacked:
                buffer[: len(unpacked)] = unpacked
                return len(unpacked)


def _unpacked(packed: BinaryIO, id: str) -> Any:
    """Return the file that a packed one holds, by the end of its name."""
    match Path(id.lower()).suffix:
        case ".tgz" | ".gz":
            return gzip.GzipFile(fileobj=packed)
        case ".txz" | ".xz":
            return _Unpacking(
                packed, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_LZMA_MEMORY_BYTES)
            )
        case ".tbz2" | ".bz2":
            return _Unpacking(packed, bz2.BZ2Decompressor)
        case ".tzst" | ".zst":
            arrow = pyarrow()
            return arrow.CompressedInputStream(arrow.PythonFile(packed, "r"), "zstd")
    return packed
