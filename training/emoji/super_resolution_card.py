"""The measured part of the model card of a pipeline that draws small emoji larger, and the picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from training.data.dataset import scale_to_unit
from training.emoji.dataset import EmojiDataset
from training.evaluation.model_card import render_sampling
from training.evaluation.plots import GridBlock, save_labelled_grid

if TYPE_CHECKING:
    from training.emoji.super_resolution import SuperResolutionEvaluation

_NUM_SHOWN = 3  # emoji of a style


def render_super_resolution(evaluation: "SuperResolutionEvaluation") -> str:
    """Return the evaluation as Markdown."""
    size_px = evaluation.source_size_px
    lines = [
        "## Evaluation",
        "",
        "![Of each style: small pictures, interpolated, drawn, and real](samples.png)",
        "",
        f"Made by `smalti evaluate` on {evaluation.data} (all figures: `metrics.json`):"
        f" {evaluation.num_images:,} pictures that training never showed, at {size_px} px by means over"
        f" areas."
        f" {render_sampling(evaluation.sampling)}, seed {evaluation.seed};"
        f" {evaluation.seconds_per_image:.3f} s an image in batches of {evaluation.batch_size}"
        f" ({evaluation.num_threads} threads).",
        "",
        "| made larger by | PSNR | made small again | perceptual distance | emoji first | in first five |",
        "|---|---|---|---|---|---|",
    ]
    for name, scores in evaluation.scores.items():
        found = scores.retrieval
        lines.append(
            f"| {name} | {scores.psnr_db:.2f} dB | {scores.source_psnr_db:.2f} dB"
            f" | {scores.perceptual_distance:.4f} | {found.recall_at_1:.1%} | {found.recall_at_5:.1%} |"
        )
    lines += [
        "",
        "PSNR is to the real pictures, and of what is made small again to the small ones. The perceptual"
        " distance is in the features of EfficientNet-Lite0's early blocks. Emoji are looked for among all"
        " real pictures of their style. What is drawn can't be better than the last row.",
    ]
    for doubt in evaluation.judge_verdict.doubts("The judge of emoji"):
        lines += ["", doubt]
    return "\n".join(lines)


def save_enlarged(path: Path, data: EmojiDataset, columns: Mapping[str, Tensor]) -> None:
    """Save a row for each style: its first pictures, in every column's kind."""
    blocks: list[list[Tensor]] = [[] for _ in range(_NUM_SHOWN)]
    names = []
    for number, style in enumerate(data.style_names):
        rows = (data.styles == number).nonzero()[:_NUM_SHOWN, 0].tolist()
        if not rows:
            continue
        names.append(style)
        for place, block in enumerate(blocks):
            row = rows[min(place, len(rows) - 1)]
            block.append(torch.stack([scale_to_unit(images[row]) for images in columns.values()]))
    title = " | ".join(columns)
    save_labelled_grid(path, [GridBlock(title, torch.stack(block)) for block in blocks], row_names=names)
