"""How much memory decoding a picture takes, from a few bytes of its header."""

import struct

from models.media.png import SIGNATURE

# Pixels as Pillow holds them, and what its decoders and a turned copy take beside them.
_PNG_BYTES_PER_PIXEL = 5
_JPEG_BYTES_PER_PIXEL = 8
_WEBP_BYTES_PER_PIXEL = 16
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_CONTENT = frozenset({0x00, 0x01, *range(0xD0, 0xDA)})
_MAX_SEGMENTS = 1000


def announced_bytes(data: bytes) -> int:
    """Return about how much memory decoding takes; 0 for what is not a picture, which is refused soon."""
    try:
        if data.startswith(SIGNATURE):
            width, height = struct.unpack_from(">II", data, 16)
            return width * height * _PNG_BYTES_PER_PIXEL
        if data.startswith(b"\xff\xd8"):
            return _jpeg_pixels(data) * _JPEG_BYTES_PER_PIXEL
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _webp_pixels(data) * _WEBP_BYTES_PER_PIXEL
    except struct.error:  # cut
        pass
    return 0


def _jpeg_pixels(data: bytes) -> int:
    position = 2
    for _ in range(_MAX_SEGMENTS):
        marker, kind, length = struct.unpack_from(">BBH", data, position)
        if marker != 0xFF or kind == 0xFF:  # what is between segments is passed over
            position += 1
        elif kind in _WITHOUT_CONTENT:
            position += 2
        elif kind in _START_OF_FRAME:
            height, width = struct.unpack_from(">HH", data, position + 5)
            return int(width * height)
        else:
            position += 2 + length
    return 0xFFFF**2  # the most that a JPEG can have: its decoder will find out


def _webp_pixels(data: bytes) -> int:
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(side, "little") + 1 for side in struct.unpack_from("3s3s", data, 24))
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    return width * height
