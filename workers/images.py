"""Image files in and out. Bounds are checked on the header, before a pixel is decoded. Without torch."""

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError

from workers.errors import InvalidImage
from workers.messages import Background, ImageFormat

Pixels = npt.NDArray[np.uint8]

MAX_IMAGE_BYTES = 10 * 2**20
MAX_IMAGE_PIXELS = 32 * 2**20
PREVIEW_SIDE_PX = 128
MEDIA_TYPES: dict[ImageFormat, str] = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg"}

_NEARLY_WHITE = 235
_OUTSIDE = 128  # neither of the two values of the mask that is filled
_FORMATS: dict[str, ImageFormat] = {"PNG": "png", "JPEG": "jpeg", "WEBP": "webp"}
# What Pillow's decoders raise on files that are broken, besides OSError.
_BROKEN = (
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


@dataclass(frozen=True)
class ImageInfo:
    """What a header says."""

    format: ImageFormat
    width_px: int
    height_px: int


def check_image(data: bytes) -> ImageInfo:
    """Return what an image file is, from its header alone.

    Raises: InvalidImage when it is no PNG, JPEG or WebP, or exceeds MAX_IMAGE_BYTES or MAX_IMAGE_PIXELS.
    """
    with _open(data) as image:
        return ImageInfo(_FORMATS[image.format or ""], *image.size)


def load_image(data: bytes, size_px: int, channels: Literal[1, 3]) -> Pixels:
    """Decode an image file to (size_px, size_px, channels) pixels.

    An animation gives its first frame. The orientation that a camera noted is applied, transparent parts are
    white, the centred square is cut out and resized with the Lanczos filter; an image that has the size
    already keeps its pixels exactly. This is what training does to a folder of images.

    Raises: InvalidImage, also when the file turns out to be broken.
    """
    with _open(data) as opened:
        try:
            image = ImageOps.exif_transpose(opened)
            image = _flatten(image).convert("L" if channels == 1 else "RGB")
        except _BROKEN as error:
            raise InvalidImage(f"image: the {opened.format} file is broken or cut short") from error
    if image.size != (size_px, size_px):
        image = ImageOps.fit(image, (size_px, size_px), Image.Resampling.LANCZOS)
    return np.asarray(image, dtype=np.uint8).reshape(size_px, size_px, channels)


def encode_image(pixels: Pixels, format: ImageFormat) -> bytes:
    """Encode (H, W, C) pixels, C of 1, 3 or 4; the same pixels give the same bytes.

    PNG and WebP keep the pixels exactly; JPEG has quality 95 and full colour resolution.
    """
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    buffer = io.BytesIO()
    match format:
        case "png":
            image.save(buffer, "PNG", compress_level=6)
        case "webp":
            image.save(buffer, "WEBP", lossless=True, quality=50, method=3)
        case "jpeg":
            image.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def with_background(pixels: Pixels, background: Background) -> Pixels:
    """Return (H, W, 3) pixels as they are, or as (H, W, 4) with the white around what they show cleared.

    Cleared is what is nearly white and connected to the border. On its edge, a pixel is taken for colour over
    white, as transparent as it can be; so putting the result on white gives the same picture again.
    """
    if background == "white":
        return pixels
    is_light = pixels.min(-1) >= _NEARLY_WHITE
    mask = np.pad(np.where(is_light, 255, 0).astype(np.uint8), 1, constant_values=255)
    framed = Image.fromarray(mask).copy()  # one that shares the array's memory can't be drawn on
    ImageDraw.floodfill(framed, (0, 0), _OUTSIDE)
    is_outside = np.asarray(framed) == _OUTSIDE  # (H + 2, W + 2)
    is_near = is_outside.copy()
    for axis in (0, 1):
        for shift in (-1, 1):
            is_near |= np.roll(is_outside, shift, axis)
    is_near = is_near[1:-1, 1:-1]
    colours = pixels.astype(np.float64) / 255
    alpha = np.where(is_near, 1 - colours.min(-1), 1.0)  # (H, W)
    over = 1 - (1 - colours) / np.maximum(alpha, 1e-9)[..., None]
    shown = np.concatenate([np.where(alpha[..., None] > 0, over, 0), alpha[..., None]], axis=-1)
    return (shown.clip(0, 1) * 255).round().astype(np.uint8)


def encode_preview(pixels: Pixels) -> bytes:
    """Encode (H, W, C) pixels as a WebP whose sides are at most PREVIEW_SIDE_PX."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((PREVIEW_SIDE_PX, PREVIEW_SIDE_PX))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80, method=2)
    return buffer.getvalue()


def _open(data: bytes) -> Image.Image:
    if len(data) > MAX_IMAGE_BYTES:
        raise InvalidImage(f"image: at most {MAX_IMAGE_BYTES} bytes, got {len(data)}")
    try:
        image = Image.open(io.BytesIO(data), formats=tuple(_FORMATS))
    except UnidentifiedImageError:
        raise InvalidImage("image: the bytes are no PNG, JPEG or WebP file") from None
    except _BOMB as error:
        raise InvalidImage(f"image: at most {MAX_IMAGE_PIXELS} pixels, got far more") from error
    except _BROKEN as error:
        raise InvalidImage("image: the file's header is broken") from error
    width, height = image.size
    if width * height > MAX_IMAGE_PIXELS:
        image.close()
        raise InvalidImage(
            f"image: at most {MAX_IMAGE_PIXELS} pixels, got {width} x {height} = {width * height};"
            " make it smaller first"
        )
    return image


def _flatten(image: Image.Image) -> Image.Image:
    """Return the image in 8 bits a channel, its transparent parts white."""
    if image.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image
