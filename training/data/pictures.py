"""Picture files as one tensor, read by the rule that serving reads them by (``models/media/pixels.py``)."""

import atexit
import functools
import os
import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from models.media.base import InvalidMedia
from models.media.isolated import IsolatedProcess, Limits
from models.media.pixels import Pixels, open_image, read_file, upright_size
from training.data.bad_files import MAX_BAD_SHARE, skip_bad_files
from training.data.dataset import DataError

MAX_BYTES = 256 * 2**20
MAX_PIXELS = 64 * 2**20

_GREY_MODES = frozenset({"1", "L", "I;16"})
_PROGRESS_FROM_NUM_FILES = 500
_FILES_PER_CALL = 64
_MAX_PROCESSES = 4
_LIMITS = Limits(cpu_s=60, memory_bytes=2**31)


@dataclass(frozen=True)
class Pictures:
    """images: (N, C, H, W) uint8. rows: which of the files each of them is."""

    images: Tensor
    rows: list[int]


@dataclass(frozen=True)
class _Header:
    """Size of the upright picture, and whether its pixels are grey."""

    width_px: int
    height_px: int
    is_grey: bool


def read_pictures(
    files: Sequence[Path],
    *,
    image_size_px: int | None,
    channels: int | None,
    title: str,
    max_bad_share: float = MAX_BAD_SHARE,
) -> Pictures:
    """Read PNG, JPEG and WebP files; ``title`` stands before the progress bar.

    image_size_px: the shorter side is scaled to it and the middle is cut out; None wants pictures of one
    size. channels: None is 1 where every file is grey, else 3. Files that can't be used are left out, and
    named, as ``skip_bad_files`` says. They are decoded in processes of their own, so one that hangs its
    decoder, takes all memory or crashes it is one of these.

    Raises: DataError naming files that can't be used.
    """
    bad: dict[int, str] = {}
    width_px = height_px = image_size_px
    if image_size_px is None or channels is None:
        headers = _read_headers(files, bad)
        if not headers:
            skip_bad_files(files, bad, max_bad_share)
        if channels is None:
            channels = 1 if all(header.is_grey for header in headers.values()) else 3
        if image_size_px is None:
            width_px, height_px = _common_size(files, headers)
    assert width_px is not None
    assert height_px is not None
    pixels = np.empty((len(files), height_px, width_px, channels), np.uint8)
    _decode(files, pixels, bad, title)
    rows = skip_bad_files(files, bad, max_bad_share)
    kept = pixels if len(rows) == len(files) else pixels[rows]
    return Pictures(torch.from_numpy(kept).permute(0, 3, 1, 2).contiguous(), rows)


def _decode(files: Sequence[Path], pixels: Pixels, bad: dict[int, str], title: str) -> None:
    """Fill ``pixels`` (N, H, W, C), and note why a file can't be used; those noted are passed over."""
    height_px, width_px, channels = pixels.shape[1:]
    free: queue.SimpleQueue[IsolatedProcess] = queue.SimpleQueue()
    for process in _processes():
        free.put(process)

    def decode(rows: Sequence[int]) -> int:
        calls = [
            (read_file, (files[row].absolute(), width_px, height_px, channels, MAX_BYTES, MAX_PIXELS))
            for row in rows
        ]
        process = free.get()
        try:
            for row, result in zip(rows, process.results(calls), strict=True):
                if isinstance(result, InvalidMedia):
                    bad[row] = str(result).removeprefix("image: ")
                else:
                    pixels[row] = result
        finally:
            free.put(process)
        return len(rows)

    wanted = [row for row in range(len(files)) if row not in bad]
    is_short = len(files) < _PROGRESS_FROM_NUM_FILES
    with (
        tqdm(total=len(files), initial=len(bad), desc=title, unit="image", disable=is_short) as progress,
        ThreadPoolExecutor(len(_processes()), "pictures") as threads,
    ):
        started = [
            threads.submit(decode, wanted[start : start + _FILES_PER_CALL])
            for start in range(0, len(wanted), _FILES_PER_CALL)
        ]
        try:
            for done in as_completed(started):
                progress.update(done.result())
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise


@functools.cache
def _processes() -> list[IsolatedProcess]:
    """Return the processes that decode, one a core; each starts when it has something to do."""
    processes = [IsolatedProcess(_LIMITS) for _ in range(min(_MAX_PROCESSES, os.cpu_count() or 1))]
    for process in processes:
        atexit.register(process.end)
    return processes


def _common_size(files: Sequence[Path], headers: Mapping[int, _Header]) -> tuple[int, int]:
    (first_row, first), *_ = headers.items()
    for row, header in headers.items():
        if (header.width_px, header.height_px) != (first.width_px, first.height_px):
            raise DataError(
                f"{files[row]} has {header.width_px}x{header.height_px} pixels, {files[first_row]} has "
                f"{first.width_px}x{first.height_px}: set image_size_px"
            )
    return first.width_px, first.height_px


def _read_headers(files: Sequence[Path], bad: dict[int, str]) -> dict[int, _Header]:
    """Read sizes and modes without decoding pixels, and note why a file can't be used."""
    headers = {}
    for row, file in enumerate(files):
        try:
            with open_image(file, max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS) as image:
                headers[row] = _header_of(image)
        except InvalidMedia as error:
            bad[row] = str(error).removeprefix("image: ")
        except OSError as error:
            bad[row] = f"can't be read: {error.strerror or error}"
    return headers


def _header_of(image: Image.Image) -> _Header:
    return _Header(*upright_size(image), image.mode in _GREY_MODES)
