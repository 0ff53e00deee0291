"""Measure a pipeline that takes prompts on a folder of captioned images.

It is asked for the captions of the images that were kept from its training.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.pipeline import Pipeline
from training.data.captioned import NOT_TRAIN, CaptionedDataset, Captions, load_captioned
from training.data.dataset import DataError, ImageDataset
from training.evaluation.caption_card import render_caption_evaluation, save_prompted
from training.evaluation.classifier import (
    ClassifierTraining,
    TrainedClassifier,
    classify,
    load_or_train_classifiers,
    measure_accuracy,
)
from training.evaluation.images import codes_of, generate_prompts, reconstruct, score_searched
from training.evaluation.metrics import frechet_distance, measure_statistics, small_pixels
from training.evaluation.options import EvaluationOptions
from training.evaluation.preflight import load_pipeline
from training.evaluation.scores import Report, distance_ratio, score_reconstructions
from training.evaluation.verdict import Verdict

LABEL_TRAINING = ClassifierTraining(
    architecture="residual", seed=1, num_epochs=30, batch_size=128, crop_padding_px=4, is_flipped=False
)


@dataclass(frozen=True)
class LabelScores:
    """Share of images that a classifier of one set of labels puts under their own label."""

    generated: float
    reconstructed: float
    real: float
    verdict: Verdict


@dataclass(frozen=True)
class FrechetDistances:
    """Distances to the real held-out images.

    reconstructed: of training images through the tokenizer. real: of these training images themselves.
    """

    generated: float
    reconstructed: float
    real: float


@dataclass(frozen=True, kw_only=True)
class CaptionEvaluation(Report):
    """All that ``evaluate_captions`` measures, on ``num_images`` that were kept from training.

    features: the set of labels whose classifier's last features distances are measured in, or "pixels" of
    thumbnails where there are no labels to tell apart; then there are no Fréchet distances.
    nearest_train_ratio: median distance of generated images to the nearest training image over that of real
    held-out images; far below 1 tells of memorised training images.
    """

    num_images: int
    labels: dict[str, LabelScores]
    features: str
    frechet_distances: FrechetDistances | None
    nearest_train_ratio: float


def evaluate_captions(
    folder: Path, options: EvaluationOptions, label_training: ClassifierTraining | None = None
) -> CaptionEvaluation:
    """Measure the pipeline in ``folder`` and write metrics.json, samples.png and the model card there.

    Raises: ConfigError when the pipeline can't be measured; DataError when the data set has labels that it
    doesn't know, or too few images.
    """
    pipeline = load_pipeline(folder, options)
    train, test = _load_data(pipeline, options)
    classifiers = _label_classifiers(train, test, label_training or LABEL_TRAINING, options)
    generator = torch.Generator().manual_seed(options.seed)
    drawn = train.images[torch.randperm(len(train), generator=generator)[: len(test)]]
    test_reconstructed = reconstruct(pipeline.autoencoder, test.images, options)
    drawn_reconstructed = reconstruct(pipeline.autoencoder, drawn, options)
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
        return small_pixels(images) if name is None else classify(classifiers[name].model, images).features

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
    report = Report.begin(
        pipeline,
        options,
        seconds_per_image=seconds_per_image,
        tokenizer=score_reconstructions(
            test.images,
            test_reconstructed.images,
            codes_of(test_reconstructed, drawn_reconstructed),
            pipeline.spec.codebook_size,
        ),
        searched=score_searched(pipeline, test.images, options) if options.effort else None,
    )
    evaluation = CaptionEvaluation(
        **vars(report),
        num_images=len(test),
        labels={
            each: LabelScores(
                generated=measure_accuracy(classify(classifier.model, generated), _labels_of(test, each)),
                reconstructed=measure_accuracy(
                    classify(classifier.model, test_reconstructed.images), _labels_of(test, each)
                ),
                real=classifier.test_accuracy,
                verdict=classifier.verdict,
            )
            for each, classifier in classifiers.items()
        },
        features=name or "pixels",
        frechet_distances=distances,
        nearest_train_ratio=distance_ratio(of_generated, of_test, features(train.images)),
    )
    save_prompted(folder / "samples.png", test, generated)
    evaluation.save(folder, render_caption_evaluation(evaluation))
    return evaluation


def _load_data(pipeline: Pipeline, options: EvaluationOptions) -> tuple[CaptionedDataset, CaptionedDataset]:
    """Return the training images, and at most ``num_images`` of those kept from training."""
    channels, image_size_px, _ = pipeline.autoencoder.signal_shape
    data = load_captioned(
        Path(options.data),
        image_size_px=image_size_px,
        channels=channels,
        label_names=pipeline.spec.labels,
    )
    train, test = data.where("train"), data.where(*NOT_TRAIN)
    for split, images in (("train", train), ("held_out", test)):
        if len(images) < 2:
            raise DataError(
                f"data: {options.data}: at least 2 pictures of the split {split!r} are needed to measure, got"
                f" {len(images)}: add pictures, or give more lines that split"
            )
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
