"""A user's own folder of images as a data set."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from training.data.dataset import ImageDataset, Split

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
MAX_PIXELS = 64 * 1024 * 1024

_GREY_MODES = frozenset({"1", "L", "I;16"})
_SINGLE_CLASS_NAME = "image"
_TEST_SHARE_PERCENT = 10
_PROGRESS_FROM_NUM_FILES = 500


@dataclass(frozen=True)
class _Listing:
    files: list[Path]
    labels: list[int]
    class_names: tuple[str, ...]


def load_image_folder(
    folder: Path,
    split: Split,
    *,
    image_size_px: int | None = None,
    channels: int | None = None,
) -> ImageDataset:
    """Load ``folder/<split>/<class>/*``, or ``folder/<class>/*``, or the same without class folders.

    Without split folders, about a tenth of the files is the test split, chosen by a hash of the
    file name alone: adding files moves none, and one name in several classes stays on one side.
    Without class folders there is one class, "image".

    image_size_px: the shorter side is scaled to it and the middle is cut out; None wants images
    of one size. channels: None is 1 where every file is grey, else 3. Transparent parts are white.

    Raises: FileNotFoundError where there is no image; ValueError naming a file that can't be used.
    """
    listing = _list_files(folder, split)
    headers = [_read_header(path) for path in listing.files]
    if channels is None:
        channels = 1 if all(header.is_grey for header in headers) else 3
    if image_size_px is None:
        first = headers[0]
        for path, header in zip(listing.files, headers, strict=True):
            if (header.width, header.height) != (first.width, first.height):
                raise ValueError(
                    f"{path} has {header.width}x{header.height} pixels, {listing.files[0]} has "
                    f"{first.width}x{first.height}: set image_size_px"
                )
        width, height = first.width, first.height
    else:
        width = height = image_size_px

    images = torch.empty(len(listing.files), channels, height, width, dtype=torch.uint8)
    progress = tqdm(
        listing.files,
        desc=f"read {split} images",
        unit="image",
        disable=len(listing.files) < _PROGRESS_FROM_NUM_FILES,
    )
    for index, path in enumerate(progress):
        images[index] = _read_image(path, width, height, channels)
    return ImageDataset(
        images=images,
        labels=torch.tensor(listing.labels, dtype=torch.int64),
        class_names=listing.class_names,
    )


def is_test_file(name: str) -> bool:
    """Whether a file of this name belongs to the test split of a folder without split folders."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") % 100 < _TEST_SHARE_PERCENT


def _list_files(folder: Path, split: Split) -> _Listing:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder of images")
    has_split_folders = (folder / "train").is_dir() or (folder / "test").is_dir()
    # Classes come from both splits, so that a label means the same in each.
    roots = [folder / "train", folder / "test"] if has_split_folders else [folder]
    class_names = sorted({path.name for root in roots for path in _class_folders(root)})
    root = folder / split if has_split_folders else folder

    files: list[Path] = []
    labels: list[int] = []
    for label, class_folder in enumerate([root / name for name in class_names] or [root]):
        for path in _image_files(class_folder):
            if has_split_folders or is_test_file(path.name) == (split == "test"):
                files.append(path)
                labels.append(label)
    if class_names and _image_files(root):
        raise ValueError(
            f"{root} holds class folders and loose images ({_image_files(root)[0].name}): "
            "put each image into a class folder"
        )
    if not files:
        raise FileNotFoundError(f"{root} holds no {split} image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return _Listing(files, labels, tuple(class_names) or (_SINGLE_CLASS_NAME,))


def _class_folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


@dataclass(frozen=True)
class _Header:
    width: int
    height: int
    is_grey: bool


def _read_header(path: Path) -> _Header:
    """Read size and mode without decoding pixels, refusing a picture that is too large."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            is_grey = image.mode in _GREY_MODES
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: {error}") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not an image that can be read") from error
    if width * height > MAX_PIXELS:
        raise ValueError(f"{path}: at most {MAX_PIXELS} pixels, got {width}x{height}")
    return _Header(width, height, is_grey)


def _read_image(path: Path, width: int, height: int, channels: int) -> torch.Tensor:
    """Decode one file, (C, H, W) uint8."""
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode == "I;16":  # convert("L") would clip it to 8 bits
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if "A" in image.getbands() or "transparency" in image.info:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            image = image.convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path} can't be decoded: {error}") from error
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return pixels.reshape(height, width, channels).permute(2, 0, 1)
