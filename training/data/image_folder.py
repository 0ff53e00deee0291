"""A user's own folder of images as a data set."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from training.data.dataset import DataError, ImageDataset, Split
from training.data.pictures import read_pictures

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
SINGLE_CLASS_NAMES = ("image",)

_TEST_SHARE_PERCENT = 10


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
    Without class folders there is one class, "image". Sizes and channels: see ``read_pictures``.

    Raises: DataError where there is no image, or naming a file that can't be used.
    """
    listing = _list_files(folder, split)
    return ImageDataset(
        images=read_pictures(
            listing.files, image_size_px=image_size_px, channels=channels, title=f"read {split} images"
        ),
        labels=torch.tensor(listing.labels, dtype=torch.int64),
        class_names=listing.class_names,
    )


def is_test_file(name: str) -> bool:
    """Whether a file of this name belongs to the test split of a folder without split folders."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") % 100 < _TEST_SHARE_PERCENT


def _list_files(folder: Path, split: Split) -> _Listing:
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder of images")
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
        raise DataError(
            f"{root} holds class folders and loose images ({_image_files(root)[0].name}): "
            "put each image into a class folder"
        )
    if not files:
        raise DataError(f"{root} holds no {split} image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return _Listing(files, labels, tuple(class_names) or SINGLE_CLASS_NAMES)


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
