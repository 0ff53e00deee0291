"""The emoji data set as its judge and its evaluation see it."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from training.data.caption_line import CaptionSplit
from training.data.captioned import (
    CAPTIONS_FILE,
    Captions,
    LabelNames,
    read_captions,
)
from training.data.dataset import DataError
from training.data.json_lines import read_json_lines


@dataclass(frozen=True)
class EmojiDataset:
    """Images (N, C, H, W) uint8 of emoji in styles, with their captions and code points."""

    images: Tensor
    captions: Captions
    code_points: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def style_names(self) -> tuple[str, ...]:
        return self.captions.label_names["style"]

    @property
    def styles(self) -> Tensor:
        """(N,) int64, indices into style_names."""
        return self.captions.labels[:, list(self.captions.label_names).index("style")]

    @property
    def names(self) -> list[str]:
        """The name of each image's emoji: its first caption."""
        return [line.caption[0] for line in self.captions.lines]

    def style_of(self, row: int) -> str:
        """Return the style of a row."""
        return self.captions.lines[row].labels["style"]

    def rows(self, *splits: CaptionSplit) -> list[int]:
        """Return the rows of some splits."""
        return self.captions.rows(*splits)

    def where(self, *splits: CaptionSplit) -> "EmojiDataset":
        """Return the images of some splits; the names stay as they are."""
        rows = self.rows(*splits)
        code_points = tuple(self.code_points[row] for row in rows)
        return EmojiDataset(self.images[rows], self.captions.take(rows), code_points)


def load_emoji(
    folder: Path,
    *,
    image_size_px: int | None = None,
    channels: int | None = None,
    label_names: LabelNames | None = None,
) -> EmojiDataset:
    """Load all images of all splits; ``label_names`` are those of a pipeline.

    Raises: DataError naming a line or file that can't be used.
    """
    captions = read_captions(folder, label_names)
    if "style" not in captions.label_names:
        raise DataError(f"{folder / CAPTIONS_FILE}: labels: the emoji data set has styles, this one has none")
    code_points = []
    for number, raw in read_json_lines(folder / CAPTIONS_FILE):
        if not isinstance(raw.get("code_point"), str):
            raise DataError(f"{folder / CAPTIONS_FILE}, line {number}: code_point: missing, or not a string")
        code_points.append(raw["code_point"])
    data = captions.read_images(image_size_px=image_size_px, channels=channels, max_bad_share=0)
    return EmojiDataset(data.images, captions, tuple(code_points))
