"""The measured part of the model card of a pipeline of emoji, and the pictures beside it."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from training.data.dataset import scale_to_unit
from training.emoji.dataset import EmojiDataset
from training.evaluation.model_card import render_sampling, render_tokenizer, title_of
from training.evaluation.plots import GridBlock, save_captioned_grid, save_labelled_grid

if TYPE_CHECKING:
    from training.emoji.evaluate import EmojiEvaluation
    from training.emoji.retrieval import Retrieval

_NUM_PAIRS = 6  # in a row of the picture


def render_emoji_evaluation(evaluation: "EmojiEvaluation") -> str:
    """Return the evaluation as Markdown."""
    tokenizer, held_out, others = evaluation.tokenizer, evaluation.held_out, evaluation.real_in_other_styles
    title = title_of(tokenizer)
    unseen = evaluation.unseen
    lines = [
        "## Evaluation",
        "",
        "![Held-out pairs: the real picture, and one generated](samples.png)",
        "",
        f"Made by `smalti evaluate` on {evaluation.data} (all figures: `metrics.json`).",
        "",
        f"### {title}, {tokenizer.num_images:,} images of emoji that training never showed",
        "",
        *render_tokenizer(tokenizer, evaluation.searched, evaluation.effort),
        "",
        "### Generated images",
        "",
        f"One for each held-out pair and unseen emoji, under its name and style. "
        f"{render_sampling(evaluation.sampling)}, seed {evaluation.seed}; "
        f"{evaluation.seconds_per_image:.3f} s an image in batches of {evaluation.batch_size} "
        f"({evaluation.num_threads} threads).",
        "",
        "| the true emoji is found among all real ones of the style | images | first | in the first five |",
        "|---|---|---|---|",
        _row("**generated**, held-out pairs of emoji and style", held_out),
        _row("real pictures of these emoji in other styles", others),
        _row("**generated**, emoji unseen in any style", unseen),
        f"| chance, for these | | {1 / unseen.num_candidates:.2%} | {unseen.chance_at_5:.2%} |",
        "",
        f"Held-out pairs reach {_ratio(held_out.recall_at_1, others.recall_at_1)} of what real pictures of "
        f"another style reach; unseen emoji are in the first five "
        f"{unseen.recall_at_5 / unseen.chance_at_5:.1f} times as often as by chance.",
        "",
        f"| measure | generated | real, through the {title.lower()} | real |",
        "|---|---|---|---|",
        f"| in the style asked for by a classifier of styles "
        f"| {evaluation.style_accuracy:.1%} | {evaluation.reconstructed_style_accuracy:.1%} "
        f"| {evaluation.real_style_accuracy:.1%} |",
        f"| Fréchet distance to real held-out and unseen images (real ones here: of training) "
        f"| {evaluation.frechet_distance:.4f} | {evaluation.frechet_distance_of_reconstructions:.4f} "
        f"| {evaluation.frechet_distance_of_real:.4f} |",
        f"| distance to the nearest training image, over that of real held-out and unseen images "
        f"| {evaluation.nearest_train_ratio:.2f} | | 1 |",
        "",
        "| style | held-out pairs | generated, first | real in other styles, first | in the style: generated "
        f"| real, through the {title.lower()} | real |",
        "|---|---|---|---|---|---|---|",
    ]
    for style, scores in evaluation.by_style.items():
        lines.append(
            f"| {style} | {scores.generated.num_queries} | {scores.generated.recall_at_1:.1%} "
            f"| {scores.real_in_other_styles.recall_at_1:.1%} "
            f"| {scores.style_accuracy:.1%} | {scores.reconstructed_style_accuracy:.1%} "
            f"| {scores.real_style_accuracy:.1%} |"
        )
    for doubt in [
        *evaluation.judge_verdict.doubts("The judge of emoji"),
        *evaluation.style_verdict.doubts("The classifier of styles"),
    ]:
        lines += ["", doubt]
    lines += [
        "",
        "The judge is an image encoder trained on the real training images alone, to know an emoji in "
        "every style; so is the classifier of styles. `fluent` and `fluent-flat` are the same drawings, "
        "shaded and not: a held-out pair of theirs is easier to draw.",
        "",
        "### Free prompts",
        "",
        "A fixed list, one picture each, none chosen:",
        "",
        "![Free prompts](prompts.png)",
    ]
    return "\n".join(lines)


def save_pairs(path: Path, real: EmojiDataset, generated: Tensor) -> None:
    """Save a row for each style: held-out pairs, each the real picture and the generated one."""
    rows, names = [], []
    white = torch.ones(1, *generated.shape[1:])
    for style in real.style_names:
        held_out = [row for row in real.rows("held_out") if real.style_of(row) == style]
        stride = max(1, len(held_out) // _NUM_PAIRS)  # so that those shown come from all groups
        chosen = held_out[::stride][:_NUM_PAIRS]
        pairs = [
            image
            for row in chosen
            for image in (scale_to_unit(real.images[row : row + 1]), generated[row, None])
        ]
        pairs += [white] * (2 * _NUM_PAIRS - len(pairs))
        rows.append(torch.cat(pairs))
        names.append(style)
    block = GridBlock("held-out pairs: real | generated", torch.stack(rows))
    save_labelled_grid(path, [block], row_names=names)


def save_prompts(path: Path, prompts: tuple[str, ...], images: Tensor, styles: tuple[str, ...]) -> None:
    """Save the images of free prompts, each over its prompt and style."""
    captions = [(prompt, style) for prompt, style in zip(prompts, styles, strict=True)]
    save_captioned_grid(path, images, captions, num_columns=8)


def _row(name: str, retrieval: "Retrieval") -> str:
    return (
        f"| {name} | {retrieval.num_queries:,} | {retrieval.recall_at_1:.1%} | {retrieval.recall_at_5:.1%} |"
    )


def _ratio(value: float, other: float) -> str:
    return f"{value / other:.0%}" if other else "an unknown share"
