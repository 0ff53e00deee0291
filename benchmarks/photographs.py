"""Measure tokenizers of photographs side by side, and draw pages of what they and a pipeline make.

    python -m benchmarks.photographs tokenizers runs/flowers docs/images/flowers-reconstructions.webp \\
        runs/flowers-64/plain runs/flowers-64/tokenizer
    python -m benchmarks.photographs nearest runs/flowers docs/images/flowers-nearest.webp weights/flowers-64

tokenizers  a table of their figures on the test pictures, measured as ``smalti evaluate --lite0`` does, and a
            page: the first test pictures of each class above what each tokenizer makes of them
nearest     a page: samples, each class from seed 0 on, above the training pictures that are nearest to them
            in the features of EfficientNet-Lite0
"""

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from models.autoencoders.vq import Tokenizer
from models.conditioning import Conditions
from models.media.image import IMAGE
from models.pipeline import Pipeline
from training.data.dataset import ImageDataset, scale_to_unit
from training.data.sources import load_dataset
from training.evaluation.images import generate, reconstruct
from training.evaluation.lite0_scores import lite0_features, score_with_lite0
from training.evaluation.options import EvaluationOptions
from training.evaluation.scores import score_reconstructions
from training.lite0 import Lite0

A_CLASS = 3  # pictures of a page
COLUMNS = 15


def main() -> None:
    """Measure or draw, as asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["tokenizers", "nearest"])
    parser.add_argument("data", type=Path, help="a folder with a folder for each class")
    parser.add_argument("page", type=Path, help="the picture to write")
    parser.add_argument("folders", type=Path, nargs="+", help="of tokenizers, or of a pipeline")
    asked = parser.parse_args()
    if asked.what == "tokenizers":
        compare_tokenizers(asked.data, asked.page, asked.folders)
    else:
        draw_nearest(asked.data, asked.page, asked.folders[0])


def compare_tokenizers(data: Path, page: Path, folders: list[Path]) -> None:
    """Print a row for each tokenizer and draw the page."""
    options = EvaluationOptions(data=str(data))
    judge = Lite0.load()
    rows: list[Tensor] = []
    print(
        "| | PSNR | SSIM | codes used | perceptual distance | Fréchet distance, Lite0 | class score, Lite0 |"
        "\n|---|---|---|---|---|---|---|"
    )
    for folder in folders:
        tokenizer = Tokenizer.load(folder / "tokenizer.safetensors")
        train, test = (of_size(data, split, tokenizer.config.image_size_px) for split in ("train", "test"))
        made = reconstruct(tokenizer, test.images, options)
        scores = score_reconstructions(test.images, made.images, made.codes, tokenizer.config.codebook_size)
        seen = score_with_lite0(
            judge,
            test=test.images,
            train=train.images[: len(test)],
            real=train.images[: len(test)],
            reconstructions=made.images,
            generated=made.images,
            test_reconstructions=made.images,
        )
        print(
            f"| {folder.name} | {scores.psnr_db_mean_of_images:.2f} dB | {scores.ssim:.3f}"
            f" | {scores.codebook_used_share:.0%} | {seen.perceptual_distance:.4f}"
            f" | {seen.paired_test_reconstructions.frechet_distance:.2f}"
            f" | {seen.paired_test_reconstructions.class_score:.2f} |"
        )
        shown = first_of_each_class(test)
        rows = rows or [scale_to_unit(test.images[shown])]
        rows.append(made.images[shown])
    save_page(page, rows)


def draw_nearest(data: Path, page: Path, folder: Path) -> None:
    """Draw samples above the training pictures that are nearest to them."""
    pipeline = Pipeline.load(folder)
    train = of_size(data, "train", pipeline.tokenizer.config.image_size_px)
    labels = torch.arange(len(train.class_names)).repeat_interleave(A_CLASS)
    options = EvaluationOptions(data=str(data), num_images=len(labels))
    samples = generate(pipeline, len(labels), lambda rows: Conditions(labels[rows, None]), options)
    judge = Lite0.load()
    distances = torch.cdist(
        lite0_features(judge, samples, "samples"), lite0_features(judge, train.images, "train")
    )
    save_page(page, [samples, scale_to_unit(train.images[distances.argmin(1)])])


def of_size(data: Path, split: str, size_px: int) -> ImageDataset:
    assert split in ("train", "test")
    return load_dataset(data, split, image_size_px=size_px, channels=3)  # type: ignore[arg-type]


def first_of_each_class(data: ImageDataset) -> Tensor:
    """Return the rows of the first pictures of each class."""
    return torch.cat([(data.labels == each).nonzero()[:A_CLASS, 0] for each in range(len(data.class_names))])


def save_page(page: Path, rows: list[Tensor]) -> None:
    """Write rows of pictures (N, C, H, W) in [-1, 1], of as many columns, one below the other."""
    lines = [
        torch.cat([*row[start : start + COLUMNS]], -1)
        for start in range(0, len(rows[0]), COLUMNS)
        for row in rows
    ]
    pixels = IMAGE.from_signal(torch.cat(lines, -2).numpy())
    Image.fromarray(pixels.squeeze()).save(page, quality=90, method=6)


if __name__ == "__main__":
    main()
