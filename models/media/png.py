"""The chunks of a PNG file that its pixels depend on.

Pillow refuses a whole file for a checksum or a long text in a chunk that no pixel depends on; so it is handed
only what counts.
"""

import struct
import zlib

from models.media.base import InvalidMedia

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_OF_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT"})
_COLOUR_TYPE_AT, _HAS_PALETTE = 25, b"\3"
_SIDE = frozenset({b"iCCP", b"eXIf"})  # of colours and orientation; left out where they are broken
_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_ORIENTATION_TEXTS = (b"Raw profile type exif\0", b"Raw profile type APP1\0", b"XML:com.adobe.xmp\0")
_MAX_EXPANDED_BYTES = 2**20 - 1  # what Pillow takes


def only_pixels(data: bytes) -> bytes:
    """Return a PNG file without the chunks that no pixel depends on, or ``data`` itself where it has none.

    Kept are pixels, palette and transparency; profile and orientation where they are whole. What is cut, or
    comes after a place that can't be read as a chunk, is kept, for the decoder to judge.

    Raises: InvalidMedia when the checksum of pixels, palette or transparency is wrong.
    """
    has_palette = data[_COLOUR_TYPE_AT : _COLOUR_TYPE_AT + 1] == _HAS_PALETTE
    of_pixels = _OF_PIXELS if has_palette else _OF_PIXELS - {b"PLTE"}
    view = memoryview(data)
    kept: list[memoryview] = [view[: len(SIGNATURE)]]
    position = len(SIGNATURE)
    is_whole = True
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if not kind.isalpha():
            kept.append(view[position:])
            break
        if kind == b"IEND":
            kept.append(view[position:])
            break
        content, checksum = view[position + 8 : end - 4], view[end - 4 : end]
        if kind in of_pixels:
            if end <= len(data) and not _is_right(kind, content, checksum):
                raise InvalidMedia(f"image: the PNG file is broken: wrong checksum in {kind.decode()}")
            kept.append(view[position:end])
        elif _is_kept(kind, content, checksum):
            kept.append(view[position:end])
        else:
            is_whole = False
        position = end
    return data if is_whole else b"".join(kept)


def _is_kept(kind: bytes, content: memoryview, checksum: memoryview) -> bool:
    """Whether a chunk beside the pixels says something of them, and can be read."""
    is_oriented = kind in _TEXTS and bytes(content[:32]).startswith(_ORIENTATION_TEXTS)
    if not (is_oriented or kind in _SIDE) or len(checksum) < 4 or len(content) > _MAX_EXPANDED_BYTES:
        return False
    if not _is_right(kind, content, checksum):
        return False
    compressed = _compressed(kind, bytes(content))
    return compressed is None or _expands(compressed)


def _is_right(kind: bytes, content: memoryview, checksum: memoryview) -> bool:
    return zlib.crc32(content, zlib.crc32(kind)) == int.from_bytes(checksum, "big")


def _compressed(kind: bytes, content: bytes) -> bytes | None:
    """Return the compressed part of a chunk; None where it has none."""
    _, _, rest = content.partition(b"\0")
    match kind:
        case b"iCCP" | b"zTXt":
            return rest[1:] if rest[:1] == b"\0" else b""
        case b"iTXt" if rest[:1] == b"\1":
            return rest[2:].partition(b"\0")[2].partition(b"\0")[2]
        case _:
            return None


def _expands(compressed: bytes) -> bool:
    """Whether this is whole, and not longer than Pillow takes."""
    stream = zlib.decompressobj()
    try:
        stream.decompress(compressed, _MAX_EXPANDED_BYTES)
    except zlib.error:
        return False
    return stream.eof
