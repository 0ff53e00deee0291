"""One picture for a folder of codes: its pixels by the one image rule, and what was cut out of it.

Called in processes of their own (``models/media/isolated.py``), so without torch.
"""

import io
import struct
from typing import Literal, NamedTuple

import numpy as np

from models.media.base import InvalidMedia
from models.media.pixels import Pixels, open_image, read_pixels, upright_size
from models.media.png import SIGNATURE

_SIZE = struct.Struct("<II")
_ANIMATED_WEBP = 0x02  # a flag of VP8X


class Box(NamedTuple):
    """A part of a picture, in pixels of the picture as it is meant to be seen."""

    left: float
    top: float
    right: float
    bottom: float


def read_picture(data: bytes, width_px: int, height_px: int, channels: Literal[1, 3]) -> Pixels:
    """Return width and height of the upright picture and its fitted pixels: what ``unpack`` takes apart.

    Raises: InvalidMedia; also for an animation, of which /encode would take the first frame.
    """
    if _is_animated(data):
        raise InvalidMedia("image: is animated; take it apart first, a file a frame")
    with open_image(io.BytesIO(data)) as opened:
        pixels = read_pixels(opened, width_px, height_px, channels)
        size = upright_size(opened)  # after the pixels: in a PNG the orientation may come behind them
    return np.frombuffer(_SIZE.pack(*size) + pixels.tobytes(), np.uint8)


def unpack(packed: Pixels, width_px: int, height_px: int, channels: int) -> tuple[tuple[int, int], Pixels]:
    """Return (width, height) of the picture, and its pixels (height_px, width_px, channels)."""
    width, height = _SIZE.unpack(packed[: _SIZE.size].tobytes())
    return (width, height), packed[_SIZE.size :].reshape(height_px, width_px, channels)


def crop_box(size: tuple[int, int], width_px: int, height_px: int) -> Box:
    """Return what of an upright picture of ``size`` is resized to the wanted shape: its middle."""
    width, height = size
    wanted = width_px / height_px
    cut_width, cut_height = float(width), float(height)
    if width / height >= wanted:
        cut_width = wanted * height
    else:
        cut_height = width / wanted
    left, top = (width - cut_width) / 2, (height - cut_height) / 2
    return Box(left, top, left + cut_width, top + cut_height)


def _is_animated(data: bytes) -> bool:
    """Whether the header of a WebP or PNG file says that there are several frames."""
    if data.startswith(b"RIFF") and data[12:16] == b"VP8X":
        return bool(data[20:21]) and bool(data[20] & _ANIMATED_WEBP)
    position = len(SIGNATURE) if data.startswith(SIGNATURE) else len(data)
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind in (b"acTL", b"IDAT"):
            return bool(kind == b"acTL")
        position += 12 + length
    return False
