"""The measured part of the model card of a pipeline that takes prompts, and the picture beside it."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from training.data.captioned import CaptionedDataset
from training.data.dataset import scale_to_unit
from training.evaluation.model_card import render_sampling, render_tokenizer, title_of
from training.evaluation.plots import save_captioned_grid

if TYPE_CHECKING:
    from training.evaluation.evaluate_captions import CaptionEvaluation

_NUM_PAIRS = 24
_NUM_COLUMNS = 4
_MAX_CHARACTERS = 36


def render_caption_evaluation(evaluation: "CaptionEvaluation") -> str:
    """Return the evaluation as Markdown."""
    lines = [
        "## Evaluation",
        "",
        "![Held-out prompts: the real picture, and one generated](samples.png)",
        "",
        f"Made by `smalti evaluate` on {evaluation.data} (all figures: `metrics.json`).",
        "",
        f"### {title_of(evaluation.tokenizer)}, {evaluation.num_images:,} images kept from training",
        "",
        *render_tokenizer(evaluation.tokenizer, evaluation.searched, evaluation.effort),
        "",
        "### Generated images",
        "",
        f"One for each of these images, under its caption and labels. "
        f"{render_sampling(evaluation.sampling)}, seed {evaluation.seed}; "
        f"{evaluation.seconds_per_image:.3f} s an image in batches of {evaluation.batch_size} "
        f"({evaluation.device}, {evaluation.num_threads} threads).",
        "",
        f"| measure | generated | real, through the {title_of(evaluation.tokenizer).lower()} | real |",
        "|---|---|---|---|",
    ]
    for name, scores in evaluation.labels.items():
        lines.append(
            f"| under their own {name}, by a classifier | {scores.generated:.1%} "
            f"| {scores.reconstructed:.1%} | {scores.real:.1%} |"
        )
    if (distances := evaluation.frechet_distances) is not None:
        lines.append(
            f"| Fréchet distance to the images kept from training (real ones here: of training) "
            f"| {distances.generated:.4f} | {distances.reconstructed:.4f} | {distances.real:.4f} |"
        )
    lines += [
        f"| distance to the nearest training image, over that of images kept from training "
        f"| {evaluation.nearest_train_ratio:.2f} | | 1 |",
        "",
        "Distances are in the pixels of small copies of the images."
        if evaluation.features == "pixels"
        else f"The classifiers are trained on the real training images alone; distances are in the last "
        f"features of that of {evaluation.features}.",
    ]
    for name, scores in evaluation.labels.items():
        for doubt in scores.verdict.doubts(f"The classifier of {name}"):
            lines += ["", doubt]
    return "\n".join(lines)


def save_prompted(path: Path, real: CaptionedDataset, generated: Tensor) -> None:
    """Save pairs of a real and a generated image, each over its caption and labels."""
    rows = torch.linspace(0, len(real) - 1, min(_NUM_PAIRS, len(real))).long().tolist()
    pairs = torch.cat([scale_to_unit(real.images[rows]), generated[rows]], dim=-1)  # (n, C, H, 2·W)
    captions = [
        (
            textwrap.shorten(real.lines[row].caption[0], _MAX_CHARACTERS, placeholder=" …"),
            textwrap.shorten(", ".join(real.lines[row].labels.values()), _MAX_CHARACTERS, placeholder=" …"),
        )
        for row in rows
    ]
    save_captioned_grid(path, pairs, captions, num_columns=_NUM_COLUMNS)
