"""Picture files as one tensor, read by the rule that serving reads them by (``models/media/image.py``)."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from models.media.base import InvalidMedia
from models.media.pixels import open_image, read_pixels
from training.data.dataset import DataError

MAX_BYTES = 256 * 2**20
MAX_PIXELS = 64 * 2**20

_GREY_MODES = frozenset({"1", "L", "I;16"})
_ORIENTATION = 0x0112  # of EXIF
_TURNED_BY_A_QUARTER = frozenset({5, 6, 7, 8})
_PROGRESS_FROM_NUM_FILES = 500


@dataclass(frozen=True)
class _Header:
    """Size of the upright picture, and whether its pixels are grey."""

    width_px: int
    height_px: int
    is_grey: bool


def read_pictures(
    files: Sequence[Path], *, image_size_px: int | None, channels: int | None, title: str
) -> Tensor:
    """Read PNG, JPEG and WebP files, (N, C, H, W) uint8; ``title`` stands before the progress bar.

    image_size_px: the shorter side is scaled to it and the middle is cut out; None wants pictures of one
    size. channels: None is 1 where every file is grey, else 3.

    Raises: DataError naming a file that can't be used.
    """
    width_px = height_px = image_size_px
    if image_size_px is None or channels is None:
        headers = [_read_header(file) for file in files]
        if channels is None:
            channels = 1 if all(header.is_grey for header in headers) else 3
        if image_size_px is None:
            width_px, height_px = _common_size(files, headers)
    assert width_px is not None
    assert height_px is not None
    pictures = torch.empty(len(files), channels, height_px, width_px, dtype=torch.uint8)
    is_short = len(files) < _PROGRESS_FROM_NUM_FILES
    for index, file in enumerate(tqdm(files, desc=title, unit="image", disable=is_short)):
        pictures[index] = _read_picture(file, width_px, height_px, channels)
    return pictures


def _common_size(files: Sequence[Path], headers: Sequence[_Header]) -> tuple[int, int]:
    first = headers[0]
    for file, header in zip(files, headers, strict=True):
        if (header.width_px, header.height_px) != (first.width_px, first.height_px):
            raise DataError(
                f"{file} has {header.width_px}x{header.height_px} pixels, {files[0]} has "
                f"{first.width_px}x{first.height_px}: set image_size_px"
            )
    return first.width_px, first.height_px


def _read_header(file: Path) -> _Header:
    """Read size and mode without decoding pixels."""
    with _open(file) as image:
        width_px, height_px = image.size
        try:
            orientation = image.getexif().get(_ORIENTATION)
        except (OSError, SyntaxError, ValueError, struct.error) as error:
            raise DataError(f"{file}: the file's EXIF data is broken") from error
        if orientation in _TURNED_BY_A_QUARTER:
            width_px, height_px = height_px, width_px
        return _Header(width_px, height_px, image.mode in _GREY_MODES)


def _read_picture(file: Path, width_px: int, height_px: int, channels: int) -> Tensor:
    """Decode one file, (C, H, W) uint8."""
    with _open(file) as image:
        try:
            pixels = read_pixels(image, width_px, height_px, 1 if channels == 1 else 3)
        except InvalidMedia as error:
            raise _unusable(file, error) from error
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)


def _open(file: Path) -> Image.Image:
    try:
        return open_image(file, max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS)
    except InvalidMedia as error:
        raise _unusable(file, error) from error
    except OSError as error:
        raise DataError(f"{file} can't be read: {error.strerror or error}") from error


def _unusable(file: Path, error: InvalidMedia) -> DataError:
    return DataError(f"{file}: {str(error).removeprefix('image: ')}")
