"""Loss curves and grids of images as PNG files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

_GAP_PX = 2
_FONT_PX = 12
_MIN_CELL_PX = 56


@dataclass(frozen=True)
class Curve:
    """A quantity over the steps of a run."""

    steps: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True)
class GridBlock:
    """Columns of a labelled grid under one title.

    images: (rows, columns, C, H, W) uint8, or float in [-1, 1].
    """

    title: str
    images: torch.Tensor


def save_curves(path: Path, curves: Mapping[str, Curve], *, is_log: bool = True) -> None:
    """Draw each curve by name over one axis of steps."""
    from matplotlib.figure import Figure  # slow to import, and an extra

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in curves.items():
        axes.plot(curve.steps, curve.values, label=name, linewidth=1)
    axes.set_xlabel("step")
    axes.grid(visible=True, alpha=0.3)
    if is_log and all(value > 0 for curve in curves.values() for value in curve.values):
        axes.set_yscale("log")
    if curves:
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def save_grid(path: Path, images: torch.Tensor, *, num_columns: int) -> None:
    """Save images, (N, C, H, W) uint8 or float in [-1, 1], row by row; the last row may be short."""
    num_images, channels, height, width = images.shape
    num_rows = -(-num_images // num_columns)
    filled = torch.full((num_rows * num_columns, channels, height, width), 255, dtype=torch.uint8)
    filled[:num_images] = _as_bytes(images)
    block = GridBlock("", filled.reshape(num_rows, num_columns, channels, height, width))
    save_labelled_grid(path, [block], row_names=())


def save_captioned_grid(
    path: Path, images: torch.Tensor, captions: Sequence[tuple[str, ...]], *, num_columns: int
) -> None:
    """Save images (N, C, H, W), uint8 or float in [-1, 1], row by row, each over the lines of its caption."""
    font = ImageFont.load_default(_FONT_PX - 2)
    height, width = images.shape[-2:]
    scale = max(1, -(-2 * _MIN_CELL_PX // height))
    num_lines = max(len(lines) for lines in captions)
    cell_width, cell_height = width * scale + 4 * _GAP_PX, height * scale + num_lines * _FONT_PX + 4 * _GAP_PX
    num_rows = -(-len(images) // num_columns)
    picture = Image.new("RGB", (num_columns * cell_width, num_rows * cell_height), "white")
    draw = ImageDraw.Draw(picture)
    for number, (pixels, lines) in enumerate(zip(_as_bytes(images), captions, strict=True)):
        x, y = number % num_columns * cell_width, number // num_columns * cell_height
        cell = _as_picture(pixels).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        picture.paste(cell, (x, y))
        for place, line in enumerate(lines):
            at = (x + width * scale // 2, y + height * scale + _FONT_PX // 2 + place * _FONT_PX)
            draw.text(at, line, fill="black" if place == 0 else "gray", font=font, anchor="mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, optimize=True)


def save_labelled_grid(path: Path, blocks: Sequence[GridBlock], *, row_names: Sequence[str]) -> None:
    """Save blocks of columns side by side, with a title over each and a name before each row.

    Every block has as many rows as the others. Small images are enlarged by a whole factor.
    """
    font = ImageFont.load_default(_FONT_PX)
    num_rows, _, _, height, width = blocks[0].images.shape
    scale = max(1, -(-_MIN_CELL_PX // height))
    cell_width, cell_height = width * scale + _GAP_PX, height * scale + _GAP_PX
    left = int(max((font.getlength(name) for name in row_names), default=0)) + 2 * _GAP_PX
    top = 2 * _FONT_PX if any(block.title for block in blocks) else _GAP_PX

    num_columns = sum(block.images.shape[1] for block in blocks)
    block_gap = cell_width // 4
    size = (left + num_columns * cell_width + (len(blocks) - 1) * block_gap, top + num_rows * cell_height)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for row, name in enumerate(row_names):
        middle = top + row * cell_height + cell_height // 2
        draw.text((_GAP_PX, middle), name, fill="black", font=font, anchor="lm")

    x = left
    for block in blocks:
        draw.text((x, top // 2), block.title, fill="black", font=font, anchor="lm")
        pixels = _as_bytes(block.images)
        for column in range(block.images.shape[1]):
            for row in range(num_rows):
                cell = _as_picture(pixels[row, column])
                cell = cell.resize((width * scale, height * scale), Image.Resampling.NEAREST)
                picture.paste(cell, (x, top + row * cell_height))
            x += cell_width
        x += block_gap
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, optimize=True)


def _as_bytes(images: torch.Tensor) -> torch.Tensor:
    if images.dtype == torch.uint8:
        return images.cpu()
    return ((images.float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _as_picture(pixels: torch.Tensor) -> Image.Image:
    """pixels: (C, H, W) uint8 with 1 or 3 channels."""
    return Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
