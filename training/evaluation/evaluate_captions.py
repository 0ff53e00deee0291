"""Measure a pipeline that takes prompts on a folder of captioned images.

It is asked for the captions of the images that were kept from its training.
"""

import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from models.options import Options
from models.pipeline import Pipeline
from training.data.captioned import NOT_TRAIN, CaptionedDataset, Captions, load_captioned
from training.data.dataset import DataError, ImageDataset, scale_to_unit
from training.evaluation.caption_card import render_caption_evaluation, save_prompted
from training.evaluation.classifier import (
    ClassifierTraining,
    TrainedClassifier,
    classify,
    load_or_train_classifiers,
    measure_accuracy,
)
from training.evaluation.images import generate_prompts, reconstruct, score_searched
from training.evaluation.metrics import frechet_distance, measure_statistics, nearest_distances
from training.evaluation.model_card import write_card_section
from training.evaluation.options import EvaluationOptions
from training.evaluation.scores import TokenizerMetrics, score_reconstructions

logger = logging.getLogger(__name__)

LABEL_TRAINING = ClassifierTraining(
    architecture="residual", seed=1, num_epochs=30, batch_size=128, crop_padding_px=4, is_flipped=False
)
_THUMBNAIL_PX = 16


@dataclass(frozen=True)
class LabelScores:
    """Share of images that a classifier of one set of labels puts under their own label."""

    generated: float
    reconstructed: float
    real: float


@dataclass(frozen=True)
class FrechetDistances:
    """Distances to the real held-out images.

    reconstructed: of training images through the tokenizer. real: of these training images themselves.
    """

    generated: float
    reconstructed: float
    real: float


@dataclass(frozen=True)
class CaptionEvaluation:
    """All that ``evaluate_captions`` measures, on ``num_images`` that were kept from training.

    features: the set of labels whose classifier's last features distances are measured in, or "pixels" of
    thumbnails where there are no labels to tell apart; then there are no Fréchet distances.
    nearest_train_ratio: median distance of generated images to the nearest training image over that of real
    held-out images; far below 1 tells of memorised training images.
    """

    pipeline: str
    tokenizer_fingerprint: str
    data: str
    sampling: Options
    seed: int
    device: str
    num_threads: int
    batch_size: int
    seconds_per_image: float
    num_images: int
    tokenizer: TokenizerMetrics
    effort: int
    searched: TokenizerMetrics | None
    labels: dict[str, LabelScores]
    features: str
    frechet_distances: FrechetDistances | None
    nearest_train_ratio: float


def evaluate_captions(
    folder: Path, options: EvaluationOptions, label_training: ClassifierTraining | None = None
) -> CaptionEvaluation:
    """Measure the pipeline in ``folder`` and write metrics.json, samples.png and the model card there.

    Raises: DataError when the data set has labels that the pipeline doesn't know, or too few images.
    """
    pipeline = Pipeline.load(folder, device=options.device)
    train, test = _load_data(pipeline, options)
    classifiers = _label_classifiers(train, test, label_training or LABEL_TRAINING, options)
    generator = torch.Generator().manual_seed(options.seed)
    drawn = train.images[torch.randperm(len(train), generator=generator)[: len(test)]]
    test_reconstructed = reconstruct(pipeline.tokenizer, test.images, options)
    drawn_reconstructed = reconstruct(pipeline.tokenizer, drawn, options)
    started = time.perf_counter()
    generated = generate_prompts(
        pipeline,
        [line.caption[0] for line in test.lines],
        _numbers(test.captions),
        options,
    )
    seconds_per_image = (time.perf_counter() - started) / len(test)

    name = next(iter(classifiers), None)

    def features(images: Tensor) -> Tensor:
        return _thumbnails(images) if name is None else classify(classifiers[name].model, images).features

    of_generated, of_test = features(generated), features(test.images)
    distances = None
    if name is not None:
        target = measure_statistics(of_test)
        distances = FrechetDistances(
            *(
                frechet_distance(measure_statistics(each), target)
                for each in (of_generated, features(drawn_reconstructed.images), features(drawn))
            )
        )
    of_train = features(train.images)
    evaluation = CaptionEvaluation(
        pipeline=pipeline.spec.name,
        tokenizer_fingerprint=pipeline.tokenizer.fingerprint(),
        data=options.data_name,
        sampling=options.sampling(pipeline.spec.defaults),
        seed=options.seed,
        device=options.device,
        num_threads=torch.get_num_threads(),
        batch_size=options.batch_size,
        seconds_per_image=seconds_per_image,
        num_images=len(test),
        tokenizer=score_reconstructions(
            test.images,
            test_reconstructed.images,
            torch.cat([test_reconstructed.codes, drawn_reconstructed.codes]),
            pipeline.tokenizer.config.codebook_size,
        ),
        effort=options.effort,
        searched=score_searched(pipeline, test.images, options) if options.effort else None,
        labels={
            each: LabelScores(
                *(
                    measure_accuracy(classify(classifier.model, images), _labels_of(test, each))
                    for images in (generated, test_reconstructed.images, test.images)
                )
            )
            for each, classifier in classifiers.items()
        },
        features=name or "pixels",
        frechet_distances=distances,
        nearest_train_ratio=(
            nearest_distances(of_generated, of_train).median() / nearest_distances(of_test, of_train).median()
        ).item(),
    )
    (folder / "metrics.json").write_text(json.dumps(asdict(evaluation), indent=2) + "\n")
    save_prompted(folder / "samples.png", test, generated)
    write_card_section(folder / "README.md", evaluation.pipeline, render_caption_evaluation(evaluation))
    logger.info("evaluated pipeline=%s", evaluation.pipeline)
    return evaluation


def _load_data(pipeline: Pipeline, options: EvaluationOptions) -> tuple[CaptionedDataset, CaptionedDataset]:
    """Return the training images, and at most ``num_images`` of those kept from training."""
    channels, image_size_px, _ = pipeline.tokenizer.signal_shape
    data = load_captioned(
        Path(options.data),
        image_size_px=image_size_px,
        channels=channels,
        label_names=pipeline.spec.labels,
    )
    train, test = data.where("train"), data.where(*NOT_TRAIN)
    for split, images in (("train", train), ("held_out", test)):
        if len(images) < 2:
            raise DataError(f"{options.data}: at least 2 images of the split {split!r}, got {len(images)}")
    if len(test) > options.num_images:
        rows = torch.linspace(0, len(test) - 1, options.num_images).long().tolist()
        test = CaptionedDataset(test.captions.take(rows), test.images[rows])
    return train, test


def _label_classifiers(
    train: CaptionedDataset, test: CaptionedDataset, training: ClassifierTraining, options: EvaluationOptions
) -> dict[str, TrainedClassifier]:
    """Return a classifier for each set of labels that has some to tell apart."""
    classifiers = {}
    for name, names in train.captions.label_names.items():
        if len(names) < 2:
            continue
        (classifiers[name],) = load_or_train_classifiers(
            f"{options.data_name}-{name}",
            ImageDataset(train.images, _labels_of(train, name), names),
            ImageDataset(test.images, _labels_of(test, name), names),
            [training],
            folder=options.classifier_folder,
            device=options.device,
        )
    return classifiers


def _labels_of(data: CaptionedDataset, name: str) -> Tensor:
    """Return the labels (N,) of one set."""
    return data.labels[:, list(data.captions.label_names).index(name)]


def _numbers(captions: Captions) -> list[dict[str, int]]:
    """Return the numbers of each line's labels, by set."""
    return [dict(zip(captions.label_names, row, strict=True)) for row in captions.labels.tolist()]


def _thumbnails(images: Tensor) -> Tensor:
    """Return pixels (N, D) of images (N, C, H, W), at most 16 a side."""
    height, width = (min(side, _THUMBNAIL_PX) for side in images.shape[-2:])
    pooled = [F.adaptive_avg_pool2d(scale_to_unit(part), (height, width)) for part in images.split(1000)]
    return torch.cat(pooled).flatten(1)
