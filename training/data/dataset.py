"""The one form in which training and evaluation see a data set."""

from dataclasses import dataclass
from typing import Literal

import torch

Split = Literal["train", "test"]


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


def augment(
    images: torch.Tensor, generator: torch.Generator, *, shift_px: int, may_flip: bool | torch.Tensor
) -> torch.Tensor:
    """Shift each image at random by up to ``shift_px`` and flip every second one of those that may be.

    images: (B, C, H, W) uint8. may_flip: for all of them, or (B,) bool. Returns floats in [-1, 1].
    """
    num_images, _, height, width = images.shape
    shifts = torch.randint(-shift_px, shift_px + 1, (2, num_images, 1), generator=generator)
    top, left = shifts
    rows = (top + torch.arange(height)).clamp(0, height - 1)  # (B, H), edges repeated
    columns = (left + torch.arange(width)).clamp(0, width - 1)  # (B, W)
    flipped = (torch.rand(num_images, generator=generator) < 0.5) & may_flip
    columns = torch.where(flipped[:, None], columns.flip(1), columns)
    index = torch.arange(num_images)[:, None, None]
    cut = images.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]]  # (B, H, W, C)
    return scale_to_unit(cut.permute(0, 3, 1, 2))
