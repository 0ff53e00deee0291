"""The one form in which training and evaluation see a data set, and where it comes from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

Split = Literal["train", "test"]

FASHION_MNIST = "fashion-mnist"


@dataclass(frozen=True)
class ImageDataset:
    """Labelled images of one size, held in memory.

    images: (N, C, H, W) uint8. labels: (N,) int64, indices into class_names.
    """

    images: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(
                f"images must be (N, C, H, W) uint8, got {tuple(self.images.shape)} {self.images.dtype}"
            )
        num_images = len(self.images)
        if self.labels.dtype != torch.int64 or self.labels.shape != (num_images,):
            raise ValueError(
                f"labels must be ({num_images},) int64, got {tuple(self.labels.shape)} {self.labels.dtype}"
            )
        if num_images and not 0 <= self.labels.min() <= self.labels.max() < len(self.class_names):
            raise ValueError(
                f"labels must lie in 0..{len(self.class_names) - 1}, got "
                f"{int(self.labels.min())}..{int(self.labels.max())}"
            )

    def __len__(self) -> int:
        return len(self.images)


def load_dataset(
    source: str | Path,
    split: Split,
    *,
    image_size_px: int | None = None,
    channels: int | None = None,
) -> ImageDataset:
    """Load one split of Fashion-MNIST or of a folder of images.

    source: "fashion-mnist" (where Debian's package puts it), "fashion-mnist:/some/folder",
    or a folder of images as ``image_folder.load_image_folder`` describes.
    image_size_px, channels: None keeps what the data has.

    Raises: FileNotFoundError where the data is missing; ValueError for data that can't be used.
    """
    # Both loaders build an ImageDataset, so they import this module.
    from training.data.fashion_mnist import DEFAULT_FOLDER, load_fashion_mnist
    from training.data.image_folder import load_image_folder

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
    return load_image_folder(Path(source), split, image_size_px=image_size_px, channels=channels)


def scale_to_unit(images: torch.Tensor) -> torch.Tensor:
    """Return uint8 images as float in [-1, 1], and float images as they are."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images
