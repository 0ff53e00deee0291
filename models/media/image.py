"""Image files in and out, for serving and training alike. Without torch."""

import io
import zlib
from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from models.media.announced import announced_bytes
from models.media.base import MediaInfo, MediumSpec
from models.media.pixels import FORMATS, Pixels, open_image, read_pixels
from models.media.provenance import Provenance

PREVIEW_SIDE_PX = 128
MEDIA_TYPES: dict[str, str] = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg"}

_NEARLY_WHITE = 235
_OUTSIDE = 128  # neither of the two values of the mask that is filled


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ImageSpec(MediumSpec):
    """The pictures of a pipeline: ``channels`` is 1 for grey, 3 for colour."""

    width_px: Annotated[int, Field(ge=1, le=8192)]
    height_px: Annotated[int, Field(ge=1, le=8192)]
    channels: Literal[1, 3]
    medium: Literal["image"] = "image"


class ImageMedium:
    """Pictures: arrays (H, W, C) uint8, signals (C, H, W) in [-1, 1]."""

    name = "image"
    formats: Mapping[str, str] = MEDIA_TYPES
    lossless_format = "png"
    spec_class = ImageSpec

    def load(self, data: bytes, spec: ImageSpec) -> Pixels:
        """Decode a file to the pipeline's size; see ``load_image``."""
        return load_image(data, spec.width_px, spec.height_px, spec.channels)

    def decoding_bytes(self, data: bytes) -> int:
        """Return about how much memory ``load`` takes."""
        return announced_bytes(data)

    def save(
        self,
        array: Pixels,
        format: str,
        *,
        background: str = "white",
        provenance: Provenance | None = None,
    ) -> bytes:
        """Encode pixels; a transparent background clears the white around what is shown."""
        shown = clear_background(array) if background == "transparent" else array
        return encode_image(shown, format, xmp=provenance.xmp() if provenance else None)

    def info(self, data: bytes) -> MediaInfo:
        """Return type and size."""
        with open_image(io.BytesIO(data)) as image:
            return MediaInfo(MEDIA_TYPES[FORMATS[image.format or ""]], *image.size)

    def preview(self, array: Pixels) -> tuple[bytes, str]:
        """Return a WebP whose sides are at most PREVIEW_SIDE_PX."""
        return encode_preview(array), MEDIA_TYPES["webp"]

    def to_signal(self, array: Pixels) -> npt.NDArray[np.float32]:
        """Return (C, H, W) in [-1, 1]."""
        signal: npt.NDArray[np.float32] = np.moveaxis(array, -1, 0).astype(np.float32) / 127.5 - 1
        return np.ascontiguousarray(signal)

    def from_signal(self, signal: npt.NDArray[np.float32]) -> Pixels:
        """Return (H, W, C) uint8."""
        pixels = ((signal + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
        return np.ascontiguousarray(np.moveaxis(pixels, 0, -1))


IMAGE = ImageMedium()


def load_image(data: bytes, width_px: int, height_px: int, channels: Literal[1, 3]) -> Pixels:
    """Decode an image file as ``read_pixels`` does.

    Raises: InvalidMedia.
    """
    with open_image(io.BytesIO(data)) as opened:
        return read_pixels(opened, width_px, height_px, channels)


def encode_image(pixels: Pixels, format: str, *, xmp: str | None = None) -> bytes:
    """Encode (H, W, C) pixels, C of 1, 3 or 4, with an XMP packet; the same arguments give the same bytes.

    PNG and WebP keep the pixels exactly; JPEG has quality 95 and full colour resolution.
    """
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    buffer = io.BytesIO()
    match format:
        case "png":
            # Filtered pixels repeat little but runs: looking for more takes twice the time for nothing.
            texts = PngInfo()
            if xmp:
                texts.add_itxt("XML:com.adobe.xmp", xmp)
            image.save(buffer, "PNG", compress_type=zlib.Z_RLE, pnginfo=texts)
        case "webp":
            image.save(buffer, "WEBP", lossless=True, quality=50, method=3, xmp=(xmp or "").encode())
        case "jpeg":
            image.save(buffer, "JPEG", quality=95, subsampling=0, xmp=(xmp or "").encode())
        case _:
            raise ValueError(f"format: one of {', '.join(MEDIA_TYPES)}, got {format!r}")
    return buffer.getvalue()


def clear_background(pixels: Pixels) -> Pixels:
    """Return (H, W, 3) pixels as (H, W, 4), with the white around what they show cleared.

    Cleared is what is nearly white and connected to the border. On its edge, a pixel is taken for colour over
    white, as transparent as it can be; so putting the result on white gives the same picture again.
    """
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
