"""A folder of captioned images, as ``training/data/emoji.py`` builds it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass
from tqdm import tqdm

CAPTIONS_FILE = "captions.jsonl"

CaptionSplit = Literal["train", "held_out", "unseen"]


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Caption:
    """A line of ``captions.jsonl``: what an image shows, in which style, and whose it is."""

    file: str
    code_point: str
    name: str
    keywords: tuple[str, ...]
    group: str
    subgroup: str
    style: str
    licence: str
    credit: str
    split: CaptionSplit


@dataclass(frozen=True)
class CaptionedDataset:
    """Images (N, C, H, W) uint8 in memory, with a caption each; styles and groups number their names."""

    images: torch.Tensor
    captions: tuple[Caption, ...]
    style_names: tuple[str, ...]
    group_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def styles(self) -> torch.Tensor:
        """(N,) int64, indices into style_names."""
        return torch.tensor([self.style_names.index(caption.style) for caption in self.captions])

    @property
    def groups(self) -> torch.Tensor:
        """(N,) int64, indices into group_names."""
        return torch.tensor([self.group_names.index(caption.group) for caption in self.captions])

    def rows(self, *splits: CaptionSplit) -> list[int]:
        """Return the rows of some splits."""
        return [row for row, caption in enumerate(self.captions) if caption.split in splits]

    def where(self, *splits: CaptionSplit) -> "CaptionedDataset":
        """Return the images of some splits; the names stay as they are."""
        rows = self.rows(*splits)
        captions = tuple(self.captions[row] for row in rows)
        return CaptionedDataset(self.images[rows], captions, self.style_names, self.group_names)


def is_captioned(folder: Path) -> bool:
    """Whether ``folder`` holds captions beside its images."""
    return (folder / CAPTIONS_FILE).is_file()


def load_captioned(folder: Path) -> CaptionedDataset:
    """Load all images of all splits.

    Raises: FileNotFoundError when there are no captions; ValueError naming a line or file that can't be used.
    """
    path = folder / CAPTIONS_FILE
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise FileNotFoundError(
            f"{path} is missing: `smalti data emoji --out {folder}` builds the emoji data set"
        ) from error
    reader = TypeAdapter(Caption)
    captions = []
    for number, line in enumerate(lines, start=1):
        try:
            captions.append(reader.validate_python(json.loads(line)))
        except (ValidationError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    images = []
    for caption in tqdm(captions, desc=f"read {folder.name}", unit="image"):
        try:
            with Image.open(folder / caption.file) as image:
                images.append(np.asarray(image.convert("RGB")))
        except OSError as error:
            raise ValueError(f"{folder / caption.file} can't be read: {error}") from error
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    styles = tuple(dict.fromkeys(caption.style for caption in captions))
    groups = tuple(sorted({caption.group for caption in captions}))
    return CaptionedDataset(pixels, tuple(captions), styles, groups)
