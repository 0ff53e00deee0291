"""Colours of a picture with an ICC profile, as sRGB."""

import functools
import io

import numpy as np
from PIL import Image, ImageCms

_MAX_PROFILE_BYTES = 4 * 2**20
_SAME_WITHIN = 1  # of 255: a profile that moves no colour further is sRGB itself
_BROKEN = (ImageCms.PyCMSError, OSError, ValueError, TypeError, ImportError)


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return an 8-bit image in sRGB, with its transparency; the same image where it is in sRGB already.

    A profile that is broken, too long, or of another kind of image is ignored.
    """
    if not profile or len(profile) > _MAX_PROFILE_BYTES:
        return image
    space = profile[16:20]
    is_grey, is_transparent = image.mode in ("1", "L", "LA"), image.has_transparency_data
    if space == b"RGB " and image.mode != "CMYK":
        mode = "RGB"
    elif space == b"GRAY" and is_grey:
        mode = "L"
    elif space == b"CMYK" and image.mode == "CMYK":
        mode = "CMYK"
    else:
        return image
    try:
        transform = _transform(profile, mode)
        if transform is None:
            return image
        alpha = image.convert("RGBA").getchannel("A") if is_transparent else None
        converted: Image.Image = transform.apply(_without_alpha(image, mode))
    except _BROKEN:
        return image
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def _without_alpha(image: Image.Image, mode: str) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("LA" if mode == "L" else "RGBA")  # or convert() would carry a value along
    return image if image.mode == mode else image.convert(mode)


@functools.lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return what turns colours of a profile into sRGB; None where that changes nothing.

    Raises: PyCMSError or OSError when the profile is broken.
    """
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    transform = ImageCms.ImageCmsTransform(source, target, mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC)
    if mode != "CMYK":
        probe = _probe(mode)
        moved = np.asarray(transform.apply(probe), np.int16) - np.asarray(probe.convert("RGB"), np.int16)
        if np.abs(moved).max() <= _SAME_WITHIN:
            return None
    return transform


def _probe(mode: str) -> Image.Image:
    """Return every grey, or 216 colours that fill the cube."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    steps = np.linspace(0, 255, 6).astype(np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3))
