"""Measure a pipeline on the emoji data set, with a judge that had no part in its training.

Two questions that memory can't answer: does it draw an emoji in a style in which it never saw that emoji
(held-out pairs), and does it draw emoji that it never saw in any style (unseen)? A generated image counts if
the judge finds the true emoji's real picture nearest to it, among all real pictures of the style asked for.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.pipeline import Pipeline
from training.data.caption_line import SPLITS
from training.data.dataset import DataError, ImageDataset, scale_to_unit
from training.emoji.card import render_emoji_evaluation, save_pairs, save_prompts
from training.emoji.dataset import EmojiDataset, load_emoji
from training.emoji.judge import JudgeTraining, judge_images, load_or_train_judge
from training.emoji.retrieval import Gallery, Retrieval, other_style_queries, split_queries
from training.evaluation.classifier import ClassifierTraining, classify, load_or_train_classifiers
from training.evaluation.evaluate_captions import LABEL_TRAINING
from training.evaluation.images import generate_prompts, reconstruct, score_searched
from training.evaluation.metrics import frechet_distance, measure_statistics
from training.evaluation.options import EvaluationOptions
from training.evaluation.preflight import load_pipeline
from training.evaluation.scores import Report, distance_ratio, score_reconstructions
from training.evaluation.verdict import Verdict

FREE_PROMPTS = (
    "a blue apple", "a robot cat", "a smiling pizza", "a green heart", "a sad cloud", "a red car",
    "a golden crown", "a purple dragon", "a penguin with a hat", "a house in the snow", "a flying pig",
    "a pink elephant", "a cup of coffee", "a rocket in space", "an angry tomato", "a yellow flower",
    "a dog with sunglasses", "a blue book", "a happy sun", "a ghost", "a slice of cake", "a black cat",
    "a boat on the sea", "a treasure chest", "a wizard", "a strawberry ice cream", "a sleeping face",
    "a thumbs up", "a birthday cake", "a guitar on fire", "a frog prince", "a mountain at night",
    "a crying banana", "a white rabbit", "a broken heart", "a pirate", "a snowman", "a clock",
    "an astronaut dog", "the letter A",
)  # fmt: skip


@dataclass(frozen=True)
class StyleScores:
    """Of one style: retrieval of held-out pairs, style accuracies of held-out pairs and unseen emoji.

    style_accuracy is of generated images, reconstructed_ of real ones through the tokenizer.
    """

    generated: Retrieval
    real_in_other_styles: Retrieval
    style_accuracy: float
    real_style_accuracy: float
    reconstructed_style_accuracy: float


@dataclass(frozen=True, kw_only=True)
class EmojiEvaluation(Report):
    """All that ``evaluate_emoji`` measures; tokenizer and searched are of unseen images.

    judge_verdict is by real_in_other_styles: of real pictures, too, it has to find the emoji first.
    held_out and unseen are of generated images; real_in_other_styles has real pictures of the held-out pairs'
    emoji in the styles of training as queries. Fréchet distances are to the real held-out and unseen images:
    of as many real training images, of the same images through the tokenizer, and of generated ones. Nearest
    training images: the median distance of generated images over that of real held-out and unseen ones.
    """

    held_out: Retrieval
    real_in_other_styles: Retrieval
    unseen: Retrieval
    by_style: dict[str, StyleScores]
    style_accuracy: float
    real_style_accuracy: float
    reconstructed_style_accuracy: float
    frechet_distance: float
    frechet_distance_of_reconstructions: float
    frechet_distance_of_real: float
    nearest_train_ratio: float
    judge_verdict: Verdict
    style_verdict: Verdict


def evaluate_emoji(
    folder: Path,
    options: EvaluationOptions,
    judge_training: JudgeTraining | None = None,
    style_training: ClassifierTraining | None = None,
) -> EmojiEvaluation:
    """Measure the pipeline in ``folder`` and write metrics.json, the pictures and the model card there.

    Raises: ConfigError when the pipeline can't be measured; DataError when the data set has labels that it
    doesn't know, or nothing of a split.
    """
    pipeline = load_pipeline(folder, options)
    channels, image_size_px, _ = pipeline.autoencoder.signal_shape
    data = load_emoji(
        Path(options.data),
        image_size_px=image_size_px,
        channels=channels,
        label_names=pipeline.spec.labels,
    )
    _check_splits(data, options)
    train, new = data.where("train"), data.where("held_out", "unseen")
    (style_classifier,) = load_or_train_classifiers(
        f"{options.data_name}-style",
        ImageDataset(train.images, train.styles, train.style_names),
        ImageDataset(new.images, new.styles, new.style_names),
        [style_training or LABEL_TRAINING],
        folder=options.classifier_folder,
        device=options.device,
    )
    judge = load_or_train_judge(
        train,
        judge_training or JudgeTraining(),
        folder=options.classifier_folder,
        device=options.device,
    )
    started = time.perf_counter()
    asked_styles = [{"style": style} for style in new.styles.tolist()]
    generated = generate_prompts(pipeline, new.names, asked_styles, options)
    seconds_per_image = (time.perf_counter() - started) / len(new)

    def is_in_style(images: Tensor) -> Tensor:
        return classify(style_classifier.model, images).logits.argmax(1) == new.styles  # (N,)

    real, made = judge_images(judge, data.images), judge_images(judge, generated)
    gallery = Gallery(data, real)
    held_out, others = split_queries(new, "held_out", made), other_style_queries(data, real)
    train_rows, new_rows = data.rows("train"), data.rows("held_out", "unseen")
    generator = torch.Generator().manual_seed(options.seed)
    drawn = torch.tensor(train_rows)[torch.randperm(len(train_rows), generator=generator)[: len(new_rows)]]
    target = measure_statistics(real.features[new_rows])
    reconstructions = reconstruct(pipeline.autoencoder, data.images, options)
    reconstructed = judge_images(judge, reconstructions.images[drawn])
    in_style, real_in_style = is_in_style(generated), is_in_style(new.images)
    reconstructed_in_style = is_in_style(reconstructions.images[new_rows])
    unseen_rows = data.rows("unseen")
    found_others = gallery.retrieve(others)
    chance = 1 / max(1, found_others.num_candidates)
    judge_verdict = Verdict.of(found_others.recall_at_1, chance, found_others.num_queries)
    judge_verdict.warn("The judge of emoji")
    report = Report.begin(
        pipeline,
        options,
        seconds_per_image=seconds_per_image,
        tokenizer=score_reconstructions(
            scale_to_unit(data.images[unseen_rows]),
            reconstructions.images[unseen_rows],
            reconstructions.codes,  # of all images: usage is of the whole set
            pipeline.spec.codebook_size,
        ),
        searched=score_searched(pipeline, data.images[unseen_rows], options) if options.effort else None,
    )
    evaluation = EmojiEvaluation(
        **vars(report),
        held_out=gallery.retrieve(held_out),
        real_in_other_styles=found_others,
        unseen=gallery.retrieve(split_queries(new, "unseen", made)),
        by_style={
            style: StyleScores(
                gallery.retrieve([query for query in held_out if query.style == style]),
                gallery.retrieve([query for query in others if query.style == style]),
                _share(in_style[new.styles == number]),
                _share(real_in_style[new.styles == number]),
                _share(reconstructed_in_style[new.styles == number]),
            )
            for number, style in enumerate(data.style_names)
            if any(query.style == style for query in others)
        },
        style_accuracy=_share(in_style),
        real_style_accuracy=_share(real_in_style),
        reconstructed_style_accuracy=_share(reconstructed_in_style),
        frechet_distance=frechet_distance(measure_statistics(made.features), target),
        frechet_distance_of_reconstructions=frechet_distance(
            measure_statistics(reconstructed.features), target
        ),
        frechet_distance_of_real=frechet_distance(measure_statistics(real.features[drawn]), target),
        nearest_train_ratio=distance_ratio(made.features, real.features[new_rows], real.features[train_rows]),
        judge_verdict=judge_verdict,
        style_verdict=style_classifier.verdict,
    )
    save_pairs(folder / "samples.png", new, generated)
    save_prompts(folder / "prompts.png", FREE_PROMPTS, *_generate_free(pipeline, options))
    evaluation.save(folder, render_emoji_evaluation(evaluation))
    return evaluation


def _check_splits(data: EmojiDataset, options: EvaluationOptions) -> None:
    if data.images.shape[1] != 3:
        raise DataError(f"data: emoji are judged in colour, got {data.images.shape[1]} channel")
    for split in SPLITS:
        if not data.rows(split):
            raise DataError(f"data: {options.data} is of the kind emoji and has no picture of {split!r}")


def _generate_free(pipeline: Pipeline, options: EvaluationOptions) -> tuple[Tensor, tuple[str, ...]]:
    """Return images of FREE_PROMPTS, each in the next style, and the styles' names."""
    names = pipeline.spec.labels["style"]
    styles = [number % len(names) for number in range(len(FREE_PROMPTS))]
    images = generate_prompts(pipeline, FREE_PROMPTS, [{"style": style} for style in styles], options)
    return images, tuple(names[style] for style in styles)


def _share(mask: Tensor) -> float:
    return mask.double().mean().item()
