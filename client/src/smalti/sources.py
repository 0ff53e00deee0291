"""Files as they are sent: of paths, bytes, open files, Pillow images, arrays of pixels, and uploads."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from smalti.arguments import shown
from smalti.errors import MissingPackage, UnusableSource
from smalti.fields import Source
from smalti.models import File, png_of

Files = list[bytes | File]

MAX_FILES, MAX_BYTES = 64, 64 * 2**20  # of a request

_MAX_PIXELS = 32 * 2**20  # of a picture, for every service


def files_of(source: Source | Sequence[Source]) -> Files:
    """Return the bytes of one file, or of each in a list or tuple; an upload as it is.

    Raises: UnusableSource; MissingPackage.
    """
    return list(_each_file(source))


def file_of(source: Source, role: str = "source") -> bytes | File:
    """Return the bytes of one file; an upload as it is. role: what an error calls it.

    Raises: UnusableSource; MissingPackage.
    """
    try:
        return _file_of(source)
    except UnusableSource as error:
        raise UnusableSource(str(error).replace("source: ", f"{role}: ", 1)) from error


def parts_of(source: Source | Sequence[Source]) -> Iterator[Files]:
    """Yield files, as many together as one request takes; each is read when its turn comes.

    Raises: UnusableSource; MissingPackage.
    """
    part: Files = []
    num_bytes = 0
    for file in _each_file(source):
        size = file.num_bytes if isinstance(file, File) else len(file)
        if part and (len(part) == MAX_FILES or num_bytes + size > MAX_BYTES):
            yield part
            part, num_bytes = [], 0
        part.append(file)
        num_bytes += size
    yield part


def bytes_of(source: Any) -> bytes:
    """Return the bytes of one file, or picture. Raises: UnusableSource; MissingPackage."""
    if isinstance(source, File):
        raise UnusableSource(f"source: file {source.id} is on the service already")
    file = _file_of(source)
    assert isinstance(file, bytes)
    return file


def _each_file(source: Source | Sequence[Source]) -> Iterator[bytes | File]:
    each = list(source) if isinstance(source, (list, tuple)) else [source]
    if not each:
        raise UnusableSource("source: the list is empty; give at least one picture")
    yield from map(_file_of, each)


def _file_of(source: Any) -> bytes | File:
    if isinstance(source, File):
        return source
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, (str, os.PathLike)):
        try:
            return Path(source).read_bytes()
        except OSError as error:  # so that one of many fails alone
            raise UnusableSource(f"source: can't read {os.fspath(source)!r}: {error.strerror}") from error
        except ValueError as error:  # such as a null byte
            raise UnusableSource(f"source: {shown(os.fspath(source))} can't be a path: {error}") from error
    if hasattr(source, "__array_interface__") and hasattr(source, "dtype"):
        return _png_of_array(source)
    if hasattr(source, "save") and hasattr(source, "mode"):
        return png_of(source)
    if hasattr(source, "read"):
        data = source.read()
        if isinstance(data, bytes):
            return data
        raise UnusableSource("source: the file is open as text; open it with mode 'rb'")
    raise UnusableSource(
        "source: give a path, bytes, a file open for reading, an upload, a Pillow image or a NumPy array of"
        f" uint8, got {type(source).__name__}"
    )


def _png_of_array(array: Any) -> bytes:
    """Return pixels as a PNG: (height, width) or (height, width, 1, 3 or 4) of uint8."""
    shape = tuple(array.shape)
    is_picture = len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4))
    if str(array.dtype) != "uint8" or not is_picture or 0 in shape:
        raise UnusableSource(
            "source: an array is one picture, (height, width) or (height, width, 1, 3 or 4) of uint8, got"
            f" {shape} of {array.dtype}; give several as a list"
        )
    if (num_pixels := shape[0] * shape[1]) > _MAX_PIXELS:
        raise UnusableSource(f"source: a picture has at most {_MAX_PIXELS} pixels, got {num_pixels}")
    try:
        from PIL import Image
    except ImportError:
        raise MissingPackage("pillow", "arrays of pixels") from None
    return png_of(Image.fromarray(array[..., 0] if len(shape) == 3 and shape[2] == 1 else array))
