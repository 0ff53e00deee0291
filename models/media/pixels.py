"""The one rule by which a picture's file becomes pixels, for every reader. Without torch.

Bounds are checked on the header, before a pixel is decoded. Beside the decoded pixels and the file, reading
takes a few MB: colours, orientation and size are changed strip by strip.
"""

import io
import stat
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from models.media.base import InvalidMedia
from models.media.colour import to_srgb
from models.media.png import SIGNATURE, only_pixels

Pixels = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels

MAX_IMAGE_BYTES = 10 * 2**20
MAX_IMAGE_PIXELS = 32 * 2**20
FORMATS: dict[str, str] = {"PNG": "png", "JPEG": "jpeg", "MPO": "jpeg", "WEBP": "webp"}

_OPENED = ("PNG", "JPEG", "WEBP")  # MPO is a JPEG with more pictures behind the first
_STRIP_PIXELS = 2**18
_ORIENTATION = 0x0112  # of EXIF
# What Pillow's decoders raise on files that are broken, besides OSError.
_BROKEN = (
    AssertionError,
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
)
# A warning that turns into an error where warnings are errors.
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = frozenset({5, 6, 7, 8})


def open_image(
    file: Any, *, max_bytes: int = MAX_IMAGE_BYTES, max_pixels: int = MAX_IMAGE_PIXELS
) -> Image.Image:
    """Open a PNG, JPEG or WebP file (a path, or a seekable file) within bounds; no pixel is decoded yet.

    A path must be that of a regular file: a FIFO or a device is not opened.

    Raises: InvalidMedia when it is of another kind, or exceeds a bound; OSError when it can't be read.
    """
    data = _read(file, max_bytes)
    if data.startswith(SIGNATURE):
        data = only_pixels(data)
    try:
        image = Image.open(io.BytesIO(data), formats=_OPENED)
    except UnidentifiedImageError:
        raise InvalidMedia("image: the bytes are not a PNG, JPEG or WebP file") from None
    except _BOMB as error:
        raise InvalidMedia(f"image: at most {max_pixels} pixels, got far more") from error
    except _BROKEN as error:
        raise InvalidMedia("image: the file's header is broken") from error
    width, height = image.size
    if width * height > max_pixels:
        image.close()
        raise InvalidMedia(
            f"image: at most {max_pixels} pixels, got {width} x {height} = {width * height};"
            " make it smaller first"
        )
    _scale_transparent_value(image)
    return image


def read_file(
    path: Path, width_px: int, height_px: int, channels: Literal[1, 3], max_bytes: int, max_pixels: int
) -> Pixels:
    """Open a file and decode it; see ``open_image`` and ``read_pixels``.

    Raises: InvalidMedia, also when the file can't be read.
    """
    try:
        with open_image(path, max_bytes=max_bytes, max_pixels=max_pixels) as image:
            return read_pixels(image, width_px, height_px, channels)
    except OSError as error:
        raise InvalidMedia(f"image: can't be read: {error.strerror or error}") from error


def upright_size(opened: Image.Image) -> tuple[int, int]:
    """Return width and height of the picture as it is meant to be seen."""
    width, height = opened.size
    return (height, width) if orientation_of(opened) in _TURNED else (width, height)


def orientation_of(opened: Image.Image) -> int:
    """Return what EXIF notes, 1 to 8; 1, which is upright, where it is missing or broken."""
    try:
        orientation = opened.getexif().get(_ORIENTATION, 1)
    except (*_BROKEN, UserWarning):
        return 1
    return orientation if orientation in _TRANSPOSES else 1


def read_pixels(opened: Image.Image, width_px: int, height_px: int, channels: Literal[1, 3]) -> Pixels:
    """Decode an opened image to (height_px, width_px, channels) pixels: the one rule for every reader.

    An animation gives its first frame. Colours of an ICC profile become sRGB, the orientation that a camera
    noted is applied, transparent parts are white, the middle of the wanted shape is cut out and resized with
    the Lanczos filter; an image that has the size already keeps its pixels exactly.

    Raises: InvalidMedia when the file turns out to be broken.
    """
    (pixels,) = read_crops(opened, width_px, height_px, channels, lambda _: [None])
    return pixels


def read_crops(
    opened: Image.Image,
    width_px: int,
    height_px: int,
    channels: Literal[1, 3],
    boxes_of: Callable[[tuple[int, int]], Sequence[Box | None]],
) -> list[Pixels]:
    """Decode an opened image once, as ``read_pixels`` does, and resize several parts of it.

    boxes_of: returns the parts of an upright image of this (width, height); None is its middle.

    Raises: InvalidMedia when the file turns out to be broken.
    """
    mode: Literal["L", "RGB"] = "L" if channels == 1 else "RGB"
    try:
        opened.load()
        orientation = orientation_of(opened)  # after load(): in a PNG it may come behind the pixels
        image = opened if orientation == 1 else opened.transpose(_TRANSPOSES[orientation])
        image = _plain(image, mode)
        size = (width_px, height_px)
        crops = [
            (image if box is None and image.size == size else _fit(image, size, box)).convert(mode)
            for box in boxes_of(image.size)
        ]
    except _BROKEN as error:
        raise InvalidMedia(f"image: the {opened.format} file is broken or truncated") from error
    return [np.asarray(crop, dtype=np.uint8).reshape(height_px, width_px, channels) for crop in crops]


def _plain(image: Image.Image, mode: Literal["L", "RGB"]) -> Image.Image:
    """Return the image in 8 bits a channel and in sRGB, with white behind it: grey, RGB or opaque RGBA.

    An image is written over, strip by strip, where its mode allows, so that it is not held twice.
    """
    profile = image.info.get("icc_profile")
    if not profile and not image.has_transparency_data and image.mode in ("L", mode):
        return image
    if image.mode in ("1", "L", "LA", "I;16") and not profile:
        mode = "L"
    is_in_place = image.mode == mode or (image.mode == "RGBA" and mode == "RGB")
    plain = image if is_in_place else Image.new(mode, image.size)
    for box in _strips(image.size):
        strip = _flatten(image.crop(box), profile)
        plain.paste(strip.convert(plain.mode), box)
    plain.info.pop("transparency", None)
    return plain


def _strips(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Cut a shape into boxes of about _STRIP_PIXELS."""
    width, height = size
    num_columns = min(width, _STRIP_PIXELS)
    num_rows = max(1, _STRIP_PIXELS // num_columns)
    for top in range(0, height, num_rows):
        for left in range(0, width, num_columns):
            yield left, top, min(left + num_columns, width), min(top + num_rows, height)


def _flatten(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return the image in sRGB, its transparent parts white."""
    if image.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip
        image = _in_8_bits(image)
    image = to_srgb(image, profile)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def _fit(image: Image.Image, size: tuple[int, int], box: Box | None) -> Image.Image:
    """Cut out a part, or the middle, and resize it; of RGBA channel by channel, without the last."""
    if image.mode == "RGBA":
        return Image.merge("RGB", [_fit(image.getchannel(name), size, box) for name in "RGB"])
    if box is None:
        return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    return image.resize(size, Image.Resampling.LANCZOS, box=box)


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Return 16-bit grey as mode L, or LA where a value is transparent."""
    values = np.asarray(image)
    grey = (values >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return Image.fromarray(grey)
    alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
    return Image.fromarray(np.stack([grey, alpha], -1))


def _scale_transparent_value(image: Image.Image) -> None:
    """Bring the transparent value of a PNG to the depth in which Pillow decodes its pixels.

    Of 16-bit colours 8 bits are kept: what differs from the transparent colour in the others is white, too.
    """
    value = image.info.get("transparency")
    tiles = getattr(image, "tile", ()) if image.format == "PNG" else ()
    depth = tiles[0][3] if tiles else ""
    match depth, value:
        case "L;2", int():
            image.info["transparency"] = (value & 3) * 85
        case "L;4", int():
            image.info["transparency"] = (value & 15) * 17
        case "RGB;16B", tuple():
            image.info["transparency"] = tuple(each >> 8 for each in value)


def _read(file: Any, max_bytes: int) -> bytes:
    """Return a file's bytes.

    Raises: InvalidMedia when it is too large, or not a file of bytes; OSError.
    """
    if isinstance(file, Path):
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InvalidMedia("image: is not a regular file")
        if status.st_size > max_bytes:
            raise InvalidMedia(f"image: at most {max_bytes} bytes, got {status.st_size}")
        with file.open("rb") as opened:
            return opened.read(max_bytes)
    num_bytes = file.seek(0, io.SEEK_END)
    if num_bytes > max_bytes:
        raise InvalidMedia(f"image: at most {max_bytes} bytes, got {num_bytes}")
    file.seek(0)
    data: bytes = file.read(max_bytes)  # a device has no end
    return data
