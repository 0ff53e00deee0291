"""Where a data set comes from: a name, or a folder."""

import logging
from pathlib import Path

import torch

from training.data.bad_files import MAX_BAD_SHARE
from training.data.caption_line import CaptionSplit
from training.data.captioned import CAPTIONS_FILES, Captions, is_captioned, read_captions
from training.data.dataset import DataError, ImageDataset, Split
from training.data.fashion_mnist import DEFAULT_FOLDER, load_fashion_mnist
from training.data.image_folder import SINGLE_CLASS_NAMES, load_image_folder

logger = logging.getLogger(__name__)

FASHION_MNIST = "fashion-mnist"

_FEW = 10  # training pictures of a class
_NAMED = 5
_OTHER_CAPTIONS = ("captions.json", "captions.csv", "captions.txt", "metadata.csv", "metadata.parquet")


def load_dataset(
    source: str | Path,
    split: Split,
    *,
    image_size_px: int | None = None,
    channels: int | None = None,
    max_bad_share: float = MAX_BAD_SHARE,
) -> ImageDataset:
    """Load one split of Fashion-MNIST or of a folder of images.

    source: "fashion-mnist" (where Debian's package puts it), "fashion-mnist:/some/folder",
    a folder of images as ``image_folder.load_image_folder`` describes, or one with captions (``captioned``),
    whose first set of labels are the classes and whose test split is what is unseen, or else held out.
    image_size_px, channels: None keeps what the data has. max_bad_share: of a folder's files, so many may be
    left out because they can't be used.

    Raises: DataError where the data is missing or can't be used.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    if image_size_px is not None and not 1 <= image_size_px <= 4096:
        raise ValueError(f"image_size_px must lie in 1..4096, got {image_size_px}")

    dataset = _load(
        source, split, image_size_px=image_size_px, channels=channels, max_bad_share=max_bad_share
    )
    if split == "train":
        _say_counts(source, dataset)
    return dataset


def _load(
    source: str | Path,
    split: Split,
    *,
    image_size_px: int | None,
    channels: int | None,
    max_bad_share: float,
) -> ImageDataset:
    name, _, folder = str(source).partition(":")
    if name == FASHION_MNIST:
        return load_fashion_mnist(
            Path(folder) if folder else DEFAULT_FOLDER,
            split,
            image_size_px=image_size_px,
            channels=channels,
        )
    if is_captioned(Path(source)):
        captions = read_captions(Path(source))
        if split == "train":
            captions.say(image_size_px=image_size_px, channels=channels)
        data = _of_split(captions, split).read_images(
            image_size_px=image_size_px, channels=channels, max_bad_share=max_bad_share
        )
        if not captions.label_names:
            labels = torch.zeros(len(data), dtype=torch.int64)
            return ImageDataset(data.images, labels, SINGLE_CLASS_NAMES)
        return ImageDataset(data.images, data.labels[:, 0], next(iter(captions.label_names.values())))
    _check_captions_elsewhere(Path(source))
    return load_image_folder(
        Path(source),
        split,
        image_size_px=image_size_px,
        channels=channels,
        max_bad_share=max_bad_share,
    )


def _check_captions_elsewhere(folder: Path) -> None:
    """Find captions that would be left out silently, hours before anybody asks for a prompt."""
    for path in sorted(path for name in CAPTIONS_FILES for path in folder.glob(f"*/{name}")):
        if is_captioned(path.parent):
            raise DataError(
                f"{path} isn't read there: put one {path.name} into {folder}, whose files begin with"
                f" {path.parent.name}/"
            )
    for name in _OTHER_CAPTIONS:
        if (folder / name).is_file():
            logger.warning(
                "%s is not read: captions stand in captions.jsonl, an object a line", folder / name
            )


def _say_counts(source: str | Path, dataset: ImageDataset) -> None:
    num_classes = len(dataset.class_names)
    logger.info("%s: %d pictures to train on, in %d classes", source, len(dataset), num_classes)
    counts = torch.bincount(dataset.labels, minlength=num_classes).tolist()
    few = [f"{name} {count}" for name, count in zip(dataset.class_names, counts, strict=True) if count < _FEW]
    if few and num_classes > 1:
        logger.warning(
            "%s: %d of %d classes have fewer than %d pictures to train on: %s",
            source, len(few), num_classes, _FEW, ", ".join(few[:_NAMED]) + ", …" * (len(few) > _NAMED),
        )  # fmt: skip


def _of_split(captions: Captions, split: Split) -> Captions:
    """Return the lines of a split.

    Raises: DataError when there are none.
    """
    wanted: CaptionSplit = "train"
    if split == "test":
        wanted = "unseen" if captions.rows("unseen") else "held_out"
    chosen = captions.take(captions.rows(wanted))
    if not len(chosen):
        raise DataError(
            f"{captions.folder} holds no {split} image: give some lines the split {wanted!r}, or add some:"
            f" one to train on and one to measure on are the least, got {len(captions)}"
        )
    return chosen
