"""The one form in which training and evaluation see a data set."""

from dataclasses import dataclass
from typing import Literal

import torch

from models.options import ConfigError

Split = Literal["train", "test"]


class DataError(ConfigError):
    """A data set that is missing or can't be used; the message names the file and what is wrong with it."""


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


def scale_to_unit(images: torch.Tensor) -> torch.Tensor:
    """Return uint8 images as float in [-1, 1], and float images as they are."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images
