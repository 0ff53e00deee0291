"""One picture for a folder of codes: its pixels by the one image rule, and what was cut out of it.

Called in processes of their own (``models/media/isolated.py``), so without torch.
"""

import hashlib
import io
import struct
from typing import Literal, NamedTuple

import numpy as np

from models.media.base import InvalidMedia
from models.media.pixels import Pixels, open_image, read_crops, upright_size
from models.media.png import SIGNATURE

_SIZE = struct.Struct("<II")
_ANIMATED_WEBP = 0x02  # a flag of VP8X


class Box(NamedTuple):
    """A part of a picture, in pixels of the picture as it is meant to be seen."""

    left: float
    top: float
    right: float
    bottom: float


def read_picture(
    data: bytes, width_px: int, height_px: int, channels: Literal[1, 3], num_crops: int = 1
) -> Pixels:
    """Return width and height of the upright picture and the pixels of its crops: ``unpack`` takes it apart.

    Raises: InvalidMedia; also for an animation, of which /encode would take the first frame.
    """
    if _is_animated(data):
        raise InvalidMedia("image: is animated; take it apart first, a file a frame")
    digest = hashlib.sha256(data).digest() if num_crops > 1 else b""
    with open_image(io.BytesIO(data)) as opened:
        crops = read_crops(
            opened,
            width_px,
            height_px,
            channels,
            lambda size: [None, *crop_boxes(size, width_px, height_px, digest, num_crops)[1:]],
        )
        size = upright_size(opened)  # after the pixels: in a PNG the orientation may come behind them
    return np.frombuffer(_SIZE.pack(*size) + b"".join(crop.tobytes() for crop in crops), np.uint8)


def unpack(packed: Pixels, width_px: int, height_px: int, channels: int) -> tuple[tuple[int, int], Pixels]:
    """Return (width, height) of the picture, and pixels (num_crops, height_px, width_px, channels)."""
    width, height = _SIZE.unpack(packed[: _SIZE.size].tobytes())
    return (width, height), packed[_SIZE.size :].reshape(-1, height_px, width_px, channels)


def crop_boxes(
    size: tuple[int, int], width_px: int, height_px: int, sha256: bytes, num_crops: int
) -> list[Box]:
    """Return what is cut out of an upright picture of ``size`` whose file has this digest: its middle first.

    The others have the same shape at 3/4 to 1 of its size, anywhere. They depend on the file alone, not on
    its place among others: ``docs/codes.md`` says how.
    """
    width, height = size
    middle = crop_box(size, width_px, height_px)
    boxes = [middle]
    for number in range(1, num_crops):
        drawn = hashlib.sha256(sha256 + bytes([number])).digest()
        scale, across, down = (value / 2**64 for value in struct.unpack_from("<QQQ", drawn))
        scale = 0.75 + 0.25 * scale
        cut_width = scale * (middle.right - middle.left)
        cut_height = scale * (middle.bottom - middle.top)
        left, top = across * (width - cut_width), down * (height - cut_height)
        boxes.append(Box(left, top, min(left + cut_width, width), min(top + cut_height, height)))
    return boxes


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
