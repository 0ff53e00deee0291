"""Measure pictures of emoji that are asked for in another style: what stays, and what changes.

    python benchmarks/style_change.py runs/emoji [--page docs/editing-style.png]

Sources are pictures that training never showed, and each is asked for in another style that has its emoji:
by image to image, as the service does it, and by FlowEdit, which it does not offer. The judges are those of
`smalti evaluate`, trained on real pictures alone, and kept in runs/classifiers.
"""

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.conditioning import stack_conditions
from models.media.image import IMAGE
from models.noise import draw_noise
from models.options import FlowOptions
from models.pipeline import Pipeline
from models.priors.known import interpolate
from models.priors.samplers import guide, is_guided, time_grid
from models.stage import Sample, SampleSpec, run_path
from training.data.dataset import ImageDataset, scale_to_unit
from training.emoji.dataset import EmojiDataset, load_emoji
from training.emoji.judge import JudgeTraining, judge_images, load_or_train_judge
from training.emoji.retrieval import Gallery, Query, other_style_queries
from training.evaluation.classifier import ClassifierTraining, classify, load_or_train_classifiers
from training.evaluation.evaluate_captions import LABEL_TRAINING

WEIGHTS = Path(__file__).parents[1] / "weights"
STRENGTHS = (0.5, 0.6, 0.7, 0.8)
FLOW_EDIT = (0.9,)  # strengths, too
SEED = 1
BATCH_SIZE = 32
NUM_SHOWN = 12


@dataclass(frozen=True)
class Changes:
    """Pictures (N, C, H, W) float in [-1, 1], their emoji, their styles (N,), and those asked for (N,).

    real: the real pictures in the styles asked for.
    """

    sources: Tensor
    code_points: Sequence[str]
    own_styles: Tensor
    styles: Tensor
    real: Tensor


def main() -> None:
    """Print a Markdown table; draw the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path, help="the folder of `smalti data emoji`")
    parser.add_argument("--pipeline", type=Path, default=WEIGHTS / "emoji-64")
    parser.add_argument("--num-images", type=int, default=400, help="how many pictures, at most")
    parser.add_argument("--judge-epochs", type=int, default=JudgeTraining().num_epochs)
    parser.add_argument("--style-epochs", type=int, default=LABEL_TRAINING.num_epochs)
    parser.add_argument("--classifiers", type=Path, default=Path("runs/classifiers"))
    parser.add_argument("--page", type=Path, help="where to draw pictures of the first changes")
    given = parser.parse_args()
    pipeline = Pipeline.load(given.pipeline)
    names = pipeline.spec.labels
    data = load_emoji(given.data, image_size_px=64, channels=3, label_names=names)
    changes = choose(data, given.num_images)
    made = {f"strength {strength:g}": change(pipeline, changes, strength) for strength in STRENGTHS}
    made |= {f"FlowEdit, {strength:g}": flow_edit(pipeline, changes, strength) for strength in FLOW_EDIT}
    if given.page is not None:
        draw_page(given.page, changes, list(made.values()))
    trainings = (
        replace(JudgeTraining(), num_epochs=given.judge_epochs),
        replace(LABEL_TRAINING, num_epochs=given.style_epochs),
    )
    print_table(data, changes, made, given.classifiers, trainings)


def choose(data: EmojiDataset, num_images: int) -> Changes:
    """Return pictures that training never showed, each with another style that has its emoji."""
    new = data.where("held_out", "unseen")
    row_of = {(int(data.styles[row]), data.code_points[row]): row for row in range(len(data))}
    chosen: list[tuple[int, int]] = []  # a row of ``new``, and the style asked for
    for row in torch.randperm(len(new), generator=torch.Generator().manual_seed(0)).tolist():
        known = [style for style in range(len(data.style_names)) if (style, new.code_points[row]) in row_of]
        others = [style for style in known if style != new.styles[row]]
        if others and len(chosen) < num_images:
            chosen.append((row, others[row % len(others)]))
    rows, styles = map(list, zip(*chosen, strict=True))
    real = [row_of[style, new.code_points[row]] for row, style in chosen]
    return Changes(
        scale_to_unit(new.images[rows]),
        [new.code_points[row] for row in rows],
        new.styles[rows],
        torch.tensor(styles),
        scale_to_unit(data.images[real]),
    )


def change(pipeline: Pipeline, changes: Changes, strength: float) -> Tensor:
    """Return the pictures (N, C, H, W) in their new styles, as the service draws them: without a prompt."""
    options = pipeline.spec.defaults
    assert isinstance(options, FlowOptions)
    null, changed = pipeline.conditions(), replace(options, strength=strength)
    samples = []
    for number, source in enumerate(changes.sources):
        asked = pipeline.conditions({"style": int(changes.styles[number])})
        samples.append(Sample(SampleSpec(SEED, changed, asked, null), number, source, source=source))
    path = pipeline.make_stages(BATCH_SIZE).path("generate", is_edit=True)
    for first in range(0, len(samples), BATCH_SIZE):
        run_path(path, samples[first : first + BATCH_SIZE])
    return torch.stack([sample.value for sample in samples if sample.value is not None])


@torch.inference_mode()
def flow_edit(pipeline: Pipeline, changes: Changes, strength: float) -> Tensor:
    """Return the pictures in their new styles, led by the difference between two predictions.

    FlowEdit (Kulikov et al. 2024, arXiv:2412.08629): at each time the source with fresh noise, under its own
    style, and the edited picture with the same noise, under the new one, guided.
    """
    assert pipeline.prior is not None
    options, network = pipeline.spec.defaults, pipeline.prior.network
    assert isinstance(options, FlowOptions)
    times = time_grid(options.num_steps, options.time_easing, strength)
    parts = []
    for rows in torch.arange(len(changes.sources)).split(BATCH_SIZE):
        latents = edited = pipeline.autoencoder.encode(changes.sources[rows])
        own, asked = (
            stack_conditions([pipeline.conditions({"style": int(style)}) for style in styles[rows]])
            for styles in (changes.own_styles, changes.styles)
        )
        null = pipeline.prior.null_conditions(len(rows))
        for number, (t, t_next) in enumerate(itertools.pairwise(times)):
            noise = torch.stack([draw_noise(pipeline.spec.latents, SEED, int(row), number) for row in rows])
            at = torch.full((len(rows),), t)
            noised = interpolate(latents, noise, at)
            moved = edited + noised - latents
            to_asked = network(moved, at, asked).float()
            if is_guided(t, options.guidance_scale, options.guidance_interval):
                scale = torch.full((len(rows),), options.guidance_scale)
                to_asked = guide(to_asked, network(moved, at, null).float(), scale)
            edited = edited + (t_next - t) * (to_asked - network(noised, at, own).float())
        parts.append(pipeline.tokenizer.decode(pipeline.tokenizer.quantize(edited).latents).clamp(-1, 1))
    return torch.cat(parts)


def print_table(
    data: EmojiDataset,
    changes: Changes,
    made: Mapping[str, Tensor],
    folder: Path,
    trainings: tuple[JudgeTraining, ClassifierTraining],
) -> None:
    """Print what the judges find in the pictures that were made, in their sources, and in real ones."""
    train, new = data.where("train"), data.where("held_out", "unseen")
    judge = load_or_train_judge(train, trainings[0], folder=folder)
    (classifier,) = load_or_train_classifiers(
        "emoji-style",
        ImageDataset(train.images, train.styles, train.style_names),
        ImageDataset(new.images, new.styles, new.style_names),
        [trainings[1]],
        folder=folder,
        device="cpu",
    )
    real = judge_images(judge, data.images)
    gallery = Gallery(data, real)
    found = gallery.retrieve(other_style_queries(data, real))
    print(
        f"{len(changes.code_points)} pictures. Of real pictures in other styles the judge finds"
        f" {found.recall_at_5:.1%} in the first five; the classifier is right on"
        f" {classifier.verdict.accuracy:.1%} of the real ones kept from it.\n"
    )
    print("| | emoji in the first five | in the style asked for | both |\n|---|---|---|---|")
    for name, images in {
        "the sources themselves": changes.sources,
        **made,
        "real pictures in the style": changes.real,
    }.items():
        judged = judge_images(judge, images)
        is_found = torch.tensor(
            [
                gallery.retrieve([Query(row, code_point, data.style_names[style], judged)]).recall_at_5 == 1
                for row, (code_point, style) in enumerate(
                    zip(changes.code_points, changes.styles.tolist(), strict=True)
                )
            ]
        )
        is_right = classify(classifier.model, images).logits.argmax(1) == changes.styles
        shares = [each.double().mean().item() for each in (is_found, is_right, is_found & is_right)]
        print(f"| {name} | {' | '.join(f'{share:.1%}' for share in shares)} |", flush=True)


def draw_page(path: Path, changes: Changes, made: Sequence[Tensor]) -> None:
    """Draw the first changes, a row each: the source, each strength, and the real picture in the style."""
    columns = [changes.sources, *made, changes.real]
    rows = [
        np.concatenate([IMAGE.from_signal(images[number].numpy()) for images in columns], 1)
        for number in range(min(NUM_SHOWN, len(changes.code_points)))
    ]
    sheet = Image.fromarray(np.concatenate(rows))
    sheet.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()
