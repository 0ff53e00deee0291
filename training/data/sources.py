"""Where a data set comes from: a name, or a folder."""

from pathlib import Path

import torch

from training.data.captioned import Captions, CaptionSplit, is_captioned, read_captions
from training.data.dataset import DataError, ImageDataset, Split
from training.data.fashion_mnist import DEFAULT_FOLDER, load_fashion_mnist
from training.data.image_folder import SINGLE_CLASS_NAMES, load_image_folder

FASHION_MNIST = "fashion-mnist"


def load_dataset(
    source: str | Path,
    split: Split,
    *,
    image_size_px: int | None = None,
    channels: int | None = None,
) -> ImageDataset:
    """Load one split of Fashion-MNIST or of a folder of images.

    source: "fashion-mnist" (where Debian's package puts it), "fashion-mnist:/some/folder",
    a folder of images as ``image_folder.load_image_folder`` describes, or one with captions (``captioned``),
    whose first set of labels are the classes and whose test split is what is unseen, or else held out.
    image_size_px, channels: None keeps what the data has.

    Raises: DataError where the data is missing or can't be used.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    if image_size_px is not None and not 1 <= image_size_px <= 4096:
        raise ValueError(f"image_size_px must lie in 1..4096, got {image_size_px}")

    name, _, folder = str(source).partition(":")
    if name == FASHION_MNIST:
        return load_fashion_mnist(
            Path(folder) if folder else DEFAULT_FOLDER,
            split,
            image_size_px=image_size_px,
            channels=channels,
        )
    if is_captioned(Path(source)):
        captions = _of_split(read_captions(Path(source)), split)
        images = captions.read_images(image_size_px=image_size_px, channels=channels)
        if not captions.label_names:
            labels = torch.zeros(len(captions), dtype=torch.int64)
            return ImageDataset(images, labels, SINGLE_CLASS_NAMES)
        return ImageDataset(images, captions.labels[:, 0], next(iter(captions.label_names.values())))
    return load_image_folder(Path(source), split, image_size_px=image_size_px, channels=channels)


def _of_split(captions: Captions, split: Split) -> Captions:
    """Return the lines of a split.

    Raises: DataError when there are none.
    """
    wanted: CaptionSplit = "train"
    if split == "test":
        wanted = "unseen" if captions.rows("unseen") else "held_out"
    chosen = captions.take(captions.rows(wanted))
    if not len(chosen):
        raise DataError(f"{captions.folder} holds no {split} image: give some lines the split {wanted!r}")
    return chosen
