"""A user's own folder of images as a data set."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from training.data.bad_files import MAX_BAD_SHARE
from training.data.choices import say_choices
from training.data.dataset import DataError, ImageDataset, Split, check_names
from training.data.left_out import IMAGE_SUFFIXES, is_of_users, say_left_out
from training.data.pictures import read_pictures
from training.data.splits import describe_share, hold_out
from training.data.splits import is_test_file as is_test_file  # the rule of a folder, for whoever asks here

logger = logging.getLogger(__name__)

SINGLE_CLASS_NAMES = ("image",)

_TRAIN_FOLDER = "train"
_TEST_FOLDERS = ("test", "val", "valid", "validation")  # the first that holds a picture


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
    max_bad_share: float = MAX_BAD_SHARE,
) -> ImageDataset:
    """Load ``folder/<split>/<class>/*``, or ``folder/<class>/*``, or the same without class folders.

    The test split may be called val, valid or validation as well. Without one, about a tenth of the files is
    held out by a hash of their names: see ``splits.hold_out``.
    Without class folders there is one class, "image". A folder without a picture is no class. Sizes, channels
    and ``max_bad_share``: see ``read_pictures``.

    Raises: DataError where there is no image, or naming a file that can't be used.
    """
    listing = _list_files(folder, split)
    if split == "train":
        say_choices(folder, listing.files, image_size_px=image_size_px, channels=channels)
    pictures = read_pictures(
        listing.files,
        image_size_px=image_size_px,
        channels=channels,
        title=f"read {split} images",
        max_bad_share=max_bad_share,
    )
    return ImageDataset(
        images=pictures.images,
        labels=torch.tensor(listing.labels, dtype=torch.int64)[pictures.rows],
        class_names=listing.class_names,
    )


def _list_files(folder: Path, split: Split) -> _Listing:
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder of images")
    folders = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    train, reason = folders.get(_TRAIN_FOLDER, folder), "there is no test/ folder"
    tests = [path for name in _TEST_FOLDERS if (path := folders.get(name)) is not None]
    test = next((path for path in tests if _holds_images(path)), None)
    if train == folder:
        if "test" in folders:
            raise DataError(
                f"{folder} holds {folders['test'].name}/ and no train/: put what to learn from there"
            )
        test = None  # a class may be called "val"
    elif tests and test is None:
        reason = f"{tests[0].name}/ holds no picture"
    # Classes come from both splits, so that a label means the same in each.
    roots = [train] if test is None else [train, test]
    class_names = sorted({path.name for root in roots for path in _class_folders(root)})
    if split == "train":
        places = [root / name for root in roots for name in class_names] or roots
        taken = {path for place in places for path in _image_files(place)}
        say_left_out(folder, taken, "pictures in other folders")
    check_names(f"{folder}: class folders", class_names)
    root = test if test is not None and split == "test" else train
    files: list[Path] = []
    labels: list[int] = []
    for label, class_folder in enumerate([root / name for name in class_names] or [root]):
        found = _image_files(class_folder)
        files += found
        labels += [label] * len(found)
    if class_names and _image_files(root):
        raise DataError(
            f"{root} holds class folders and loose images ({_image_files(root)[0].name}): "
            "put each image into a class folder"
        )
    if not files:
        raise DataError(f"{root} holds no {split} image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    if test is None:
        is_held_out = hold_out([path.relative_to(root) for path in files])
        rows = [row for row, held in enumerate(is_held_out) if held == (split == "test")]
        if not rows:
            raise DataError(
                f"{root} holds no {split} image: at least 2 pictures are needed, one to train on and one"
                f" to measure on, got {len(files)}"
            )
        if split == "train" and any(is_held_out):
            logger.info("%s: %s", folder, describe_share(is_held_out, reason))
        files, labels = [files[row] for row in rows], [labels[row] for row in rows]
    return _Listing(files, labels, tuple(class_names) or SINGLE_CLASS_NAMES)


def _holds_images(root: Path) -> bool:
    return any(_image_files(path) for path in [root, *_class_folders(root)])


def _class_folders(root: Path) -> list[Path]:
    """Return the folders that hold pictures."""
    if not root.is_dir():
        return []
    return [path for path in root.iterdir() if path.is_dir() and is_of_users(path) and _image_files(path)]


def _image_files(folder: Path) -> list[Path]:
    """Return the pictures right in a folder; a pipe or a device is none."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and is_of_users(path) and path.is_file()
    )
