"""Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747), read from its IDX files."""

import gzip
import math
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F

from training.data.dataset import DataError, ImageDataset, Split

DEFAULT_FOLDER = Path("/usr/share/datasets/fashion-mnist")

CLASS_NAMES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle-boot",
)

_FILE_PREFIXES = {"train": "train", "test": "t10k"}
_SOURCE = "https://github.com/zalandoresearch/fashion-mnist"
_UNSIGNED_BYTE = 0x08
_MAX_ELEMENTS = 256 * 1024 * 1024
_RESIZED_AT_ONCE = 4096


def load_fashion_mnist(
    folder: Path,
    split: Split,
    *,
    image_size_px: int | None = None,
    channels: int | None = None,
) -> ImageDataset:
    """Load a split: 60,000 (train) or 10,000 (test) grey images of 28x28, ten balanced classes.

    image_size_px: resized to it (bilinear). channels: 3 repeats the grey channel.

    Raises: DataError saying what to install, or that a file is damaged.
    """
    prefix = _FILE_PREFIXES[split]
    images = read_idx(_find(folder, f"{prefix}-images-idx3-ubyte"))
    labels = read_idx(_find(folder, f"{prefix}-labels-idx1-ubyte"))
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DataError(
            f"{folder}: images {tuple(images.shape)} and labels {tuple(labels.shape)} don't match"
        )
    if len(labels) and labels.max() >= len(CLASS_NAMES):
        raise DataError(f"{folder}: labels lie in 0..{len(CLASS_NAMES) - 1}, got {labels.max()}")
    images = images[:, None]
    if image_size_px is not None and images.shape[-2:] != (image_size_px, image_size_px):
        images = _resize(images, image_size_px)
    if channels == 3:
        images = images.repeat(1, 3, 1, 1)
    return ImageDataset(images=images, labels=labels.long(), class_names=CLASS_NAMES)


def read_idx(path: Path) -> torch.Tensor:
    """Read an IDX file of unsigned bytes, gzipped where its name says so, into a uint8 tensor.

    Format: two zero bytes, element type, number of axes, then each axis as big-endian uint32
    (http://yann.lecun.com/exdb/mnist).
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4)
            if len(header) < 4 or header[:2] != b"\0\0" or header[2] != _UNSIGNED_BYTE:
                raise DataError(f"{path}: not an IDX file of unsigned bytes")
            shape = [int.from_bytes(file.read(4), "big") for _ in range(header[3])]
            num_elements = math.prod(shape)
            if num_elements > _MAX_ELEMENTS:
                raise DataError(f"{path}: at most {_MAX_ELEMENTS} elements, got {num_elements}")
            data = file.read(num_elements + 1)
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing: install Fashion-MNIST with `apt-get install dataset-fashion-mnist`, or put "
            f"its four files ({_SOURCE}) into a folder and give that as `--data fashion-mnist:/some/folder`"
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file ({error}): get it again") from error
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}") from error
    if len(data) != num_elements:
        raise DataError(f"{path}: {num_elements} elements announced, got {len(data)}")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).reshape(shape)


def _find(folder: Path, name: str) -> Path:
    """Return the gzipped file, or the plain one where there is only that."""
    plain = folder / name
    return plain if plain.is_file() and not (folder / f"{name}.gz").exists() else folder / f"{name}.gz"


def _resize(images: torch.Tensor, image_size_px: int) -> torch.Tensor:
    size = (image_size_px, image_size_px)
    resized = torch.empty(len(images), 1, *size, dtype=torch.uint8)
    for start in range(0, len(images), _RESIZED_AT_ONCE):
        rows = slice(start, start + _RESIZED_AT_ONCE)
        pixels = F.interpolate(images[rows].float(), size=size, mode="bilinear", antialias=True)
        resized[rows] = pixels.round().clamp(0, 255).to(torch.uint8)
    return resized
