"""Masks: which pixels of a picture are drawn anew. Without torch."""

import io

import numpy as np
from PIL import Image, ImageOps

from models.media.base import InvalidMedia
from models.media.image import ImageSpec
from models.media.pixels import Pixels, open_image, read_pixels, upright_size

_WHITE_FROM = 128


def picture_size(data: bytes) -> Pixels:
    """Return (width, height) in pixels of a picture as it is meant to be seen.

    Raises: InvalidMedia.
    """
    with open_image(io.BytesIO(data)) as opened:
        return np.array(upright_size(opened))


def load_mask(data: bytes, spec: ImageSpec) -> Pixels:
    """Return a mask (H, W, 1), 255 where the picture is drawn anew, else 0.

    That is where the file is white, or transparent. It is fitted as ``read_pixels`` fits its picture.

    Raises: InvalidMedia, also when nothing is drawn anew.
    """
    with open_image(io.BytesIO(data)) as opened:
        return _in_two_values(opened, spec, "white")


def load_transparency(data: bytes, spec: ImageSpec) -> Pixels:
    """Return the mask that is white where a picture is transparent, as OpenAI's masks are meant.

    Raises: InvalidMedia, also when nothing is transparent.
    """
    with open_image(io.BytesIO(data)) as opened:
        read_pixels(opened, 1, 1, 1)  # whatever is broken in it is said in the one way
    with open_image(io.BytesIO(data)) as opened:
        upright = ImageOps.exif_transpose(opened).convert("RGBA")
        return _in_two_values(ImageOps.invert(upright.getchannel("A")), spec, "transparent")


def _in_two_values(opened: Image.Image, spec: ImageSpec, where: str) -> Pixels:
    grey = read_pixels(opened, spec.width_px, spec.height_px, 1)
    mask = np.where(grey >= _WHITE_FROM, 255, 0).astype(np.uint8)
    if not mask.any():
        raise InvalidMedia(
            f"image: is {where} nowhere, at {spec.width_px} x {spec.height_px} px; the source is drawn anew"
            f" where its mask is {where}"
        )
    return mask
