"""The measured part of a model card, and the picture beside it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from models.options import ConfigError, FlowOptions, Options, requested
from training.data.dataset import ImageDataset, scale_to_unit
from training.evaluation.plots import GridBlock, save_labelled_grid

if TYPE_CHECKING:
    from training.evaluation.lite0_scores import Lite0Scores
    from training.evaluation.scores import ClassifierMetrics, Evaluation, SampleMetrics, TokenizerMetrics

CARD_FILE = "README.md"

_START = "<!-- evaluation -->"
_END = "<!-- /evaluation -->"

_NUM_GRID_COLUMNS = 10
_NUM_GRID_PAIRS = 3
_MAX_GRID_ROWS = 20


@dataclass(frozen=True)
class Card:
    """A model card around its evaluation."""

    before: str
    after: str


def read_card(path: Path, pipeline: str) -> Card:
    """Read the card at ``path``, or begin one.

    Raises: ConfigError when it isn't text, or has one of the evaluation's two markers alone.
    """
    try:
        card = path.read_text(encoding="utf-8") if path.exists() else f"# {pipeline}\n"
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
    before, start, rest = card.partition(_START)
    if not start:
        return Card(f"{card.rstrip()}\n\n", "\n")
    _, end, after = rest.partition(_END)
    if not end:
        raise ConfigError(f"{path}: {_START} has no {_END}")
    return Card(before, after)


def write_card_section(path: Path, pipeline: str, text: str) -> None:
    """Put an evaluation's ``text`` between its markers in the card at ``path``, making what is missing."""
    card = read_card(path, pipeline)
    path.write_text(f"{card.before}{_START}\n{text}\n{_END}{card.after}", encoding="utf-8")


def render_evaluation(evaluation: "Evaluation") -> str:
    """Return the evaluation as Markdown."""
    tokenizer = evaluation.tokenizer
    lines = [
        "## Evaluation",
        "",
        "![Generated images, and test images with their reconstructions](samples.png)",
        "",
        f"Made by `smalti evaluate` on {evaluation.data} (all figures: `metrics.json`).",
        "",
        f"### {title_of(tokenizer)}, {tokenizer.num_images:,} test images",
        "",
        *render_tokenizer(tokenizer, evaluation.searched, evaluation.effort),
        "",
        "### Generated images",
        "",
        f"{render_sampling(evaluation.sampling)}, "
        f"seed {evaluation.seed}; {evaluation.seconds_per_image:.3f} s an image in batches of "
        f"{evaluation.batch_size} ({evaluation.device}, {evaluation.num_threads} threads).",
    ]
    for name, metrics in evaluation.classifiers.items():
        lines += ["", *_render_classifier(name, metrics)]
        lines += [
            "",
            f"Distance to the nearest training image: {metrics.nearest_train_ratio:.2f} times that of "
            "test images, in the median (far below 1 would tell of memorised images).",
        ]
    has_judge = all(metrics.test_accuracy is not None for metrics in evaluation.classifiers.values())
    lines += [
        "",
        "Every row is compared with the real test images, in "
        + ("the classifier's last features. " if has_judge else "these pixels. ")
        + ("*Real* are training images" + " that the classifier never saw" * has_judge)
        + ", so this row is the floor; *reconstructions* are "
        f"the same images through the {title_of(tokenizer).lower()}. The paired row holds reconstructions of "
        "the very images it is compared with. Neighbours, for the last four columns: "
        f"{evaluation.num_neighbours}.",
    ]
    if evaluation.lite0 is not None:
        lines += ["", *_render_lite0(evaluation.lite0)]
    return "\n".join(lines)


def _render_lite0(scores: "Lite0Scores") -> list[str]:
    """Return the table of EfficientNet-Lite0's measures."""
    rows = {
        "real": scores.real,
        "reconstructions": scores.reconstructions,
        "**generated**": scores.generated,
        "reconstructed test images (paired)": scores.paired_test_reconstructions,
    }
    return [
        "In the features of EfficientNet-Lite0, which had no part but in the perceptual loss, if any"
        " (another network than FID's and IS's: these figures don't compare with theirs):",
        "",
        "| images | number | Fréchet distance | score over ImageNet's classes |",
        "|---|---|---|---|",
        *(
            f"| {name} | {row.num_images:,} | {row.frechet_distance:.3f} | {row.class_score:.2f} |"
            for name, row in rows.items()
        ),
        "",
        f"Perceptual distance of reconstructed test images: {scores.perceptual_distance:.4f}. Distance to"
        f" the nearest training image: {scores.nearest_train_ratio:.2f} times that of test images, in the"
        " median.",
    ]


def _render_classifier(name: str, metrics: "ClassifierMetrics") -> list[str]:
    """Return the table of one classifier, or of pixels, without the columns that these have not."""
    if metrics.test_accuracy is None:
        lines = ["In the pixels of small copies, as one class leaves a classifier nothing to tell apart:"]
        titles = ["images", "number", "precision", "recall", "density", "coverage"]
    else:
        lines = [
            f"Under classifier `{name}`, trained on real images alone, "
            f"{metrics.test_accuracy:.2%} right on the real test images:",
        ]
        titles = ["images", "number", "class accuracy", "Fréchet distance", "precision", "recall", "density"]
        titles += ["coverage"]
    doubts = metrics.verdict.doubts(f"Classifier `{name}`") if metrics.verdict else []
    return [
        *(line for doubt in doubts for line in (doubt, "")),
        *lines,
        "",
        f"| {' | '.join(titles)} |",
        "|" + "---|" * len(titles),
        _render_row("real", metrics.real),
        _render_row("reconstructions", metrics.reconstructions),
        _render_row("**generated**", metrics.generated),
        _render_row("reconstructed test images (paired)", metrics.paired_test_reconstructions),
    ]


def _render_row(name: str, metrics: "SampleMetrics") -> str:
    cells = [name, f"{metrics.num_images:,}"]
    if metrics.class_accuracy is not None and metrics.frechet_distance is not None:
        cells += [f"{metrics.class_accuracy:.2%}", f"{metrics.frechet_distance:.4f}"]
    shares = (metrics.precision, metrics.recall, metrics.density, metrics.coverage)
    return f"| {' | '.join([*cells, *(f'{share:.3f}' for share in shares)])} |"


def save_samples(
    path: Path,
    test: ImageDataset,
    test_reconstructions: torch.Tensor,
    generated: torch.Tensor,
    labels: torch.Tensor,
) -> None:
    """Save a row for each class: generated images, then pairs of a test image and its reconstruction."""
    real = scale_to_unit(test.images)
    samples, pairs, names = [], [], []
    for label, name in enumerate(test.class_names[:_MAX_GRID_ROWS]):
        of_class = generated[labels == label][:_NUM_GRID_COLUMNS]
        rows = (test.labels == label).nonzero()[:_NUM_GRID_PAIRS, 0]
        samples.append(_filled(of_class, _NUM_GRID_COLUMNS, generated))
        both = torch.stack([real[rows], test_reconstructions[rows]], dim=1).flatten(0, 1)
        pairs.append(_filled(both, 2 * _NUM_GRID_PAIRS, generated))
        names.append(name)
    blocks = [
        GridBlock("generated", torch.stack(samples)),
        GridBlock("test image | its reconstruction", torch.stack(pairs)),
    ]
    save_labelled_grid(path, blocks, row_names=names)


def _filled(images: torch.Tensor, num_images: int, like: torch.Tensor) -> torch.Tensor:
    """Return images, and white ones up to num_images."""
    white = torch.ones(num_images - len(images), *like.shape[1:])
    return torch.cat([images, white])


def render_sampling(sampling: Options) -> str:
    """Return the start of a sentence that says how images were sampled."""
    if not isinstance(sampling, FlowOptions):
        return ", ".join(f"{name} {value}" for name, value in requested(sampling).items())
    easing = f" eased by {sampling.time_easing:g}" if sampling.time_easing else ""
    guidance = "no guidance"
    if sampling.guidance_scale != 1:
        low, high = sampling.guidance_interval
        guidance = f"guidance {sampling.guidance_scale:g} from t = {low:g} to {high:g}"
    return f"Sampler `{sampling.sampler}`, {sampling.num_steps} steps{easing}, {guidance}"


def title_of(metrics: "TokenizerMetrics") -> str:
    """Return what to call an autoencoder: with a codebook, a tokenizer."""
    return "Autoencoder" if metrics.codebook_size is None else "Tokenizer"


def render_tokenizer(
    metrics: "TokenizerMetrics", searched: "TokenizerMetrics | None", effort: int
) -> list[str]:
    """Return the table of an autoencoder; ``searched`` is of codes searched for with ``effort``."""
    lines = [
        "| measure | value |",
        "|---|---|",
        f"| PSNR, mean over images | {metrics.psnr_db_mean_of_images:.2f} dB |",
        f"| PSNR of the mean squared error | {metrics.psnr_db_of_mean_error:.2f} dB |",
        f"| SSIM | {metrics.ssim:.4f} |",
    ]
    if searched is not None:
        lines += [
            f"| PSNR, mean over images, of codes searched for with effort {effort} "
            f"| {searched.psnr_db_mean_of_images:.2f} dB |",
            f"| SSIM, of these | {searched.ssim:.4f} |",
        ]
    if metrics.codebook_size is not None:
        lines += [
            f"| codes used, of {metrics.codebook_size:,} | {metrics.codebook_used_share:.1%} |",
            f"| perplexity of the codes | {metrics.codebook_perplexity:.0f} |",
        ]
    return lines
