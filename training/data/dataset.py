"""The one form in which training and evaluation see a data set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from models.options import ConfigError

Split = Literal["train", "test"]

_NAMED = 3


class DataError(ConfigError):
    """A data set that is missing or can't be used; the message names the file and what is wrong with it."""


def check_names(place: str, names: Sequence[str]) -> None:
    """Check before long work what a pipeline wants of the names of its classes or labels.

    Raises: DataError naming two names that differ in case or spaces alone.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.strip().casefold(), name)
        if other != name:
            raise DataError(f"{place}: {other!r} and {name!r} differ in case or spaces alone: make them one")


def describe_other_labels(
    source: str, found: Mapping[str, Sequence[str]], known: Mapping[str, Sequence[str]]
) -> str:
    """Return in one line how the labels of a data set are not those of a pipeline."""
    told = [f"sets {', '.join(found) or 'none'} instead of {', '.join(known) or 'none'}"]
    if list(found) == list(known):
        told = []
        for name in (name for name in found if list(found[name]) != list(known[name])):
            more = [label for label in found[name] if label not in known[name]]
            fewer = [label for label in known[name] if label not in found[name]]
            what = f"{len(more)} more ({', '.join(more[:_NAMED])})" * bool(more)
            what += " and " * bool(more and fewer)
            what += f"{len(fewer)} fewer ({', '.join(fewer[:_NAMED])})" * bool(fewer)
            told.append(f"{name}: {what or 'another order'}")
    return f"data: the labels of {source} are not the pipeline's: {'; '.join(told)}"


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
