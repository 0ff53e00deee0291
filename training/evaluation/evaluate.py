"""Measure a pipeline against real images, with classifiers that had no part in its training."""

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from models.conditioning import Conditions
from models.pipeline import Pipeline
from training.data.dataset import DataError, ImageDataset, describe_other_labels
from training.data.sources import load_dataset
from training.evaluation.classifier import TrainedClassifier, load_or_train_classifiers
from training.evaluation.images import generate, reconstruct, score_searched
from training.evaluation.lite0_scores import score_with_lite0
from training.evaluation.model_card import render_evaluation, save_samples
from training.evaluation.options import EvaluationOptions
from training.evaluation.preflight import load_pipeline
from training.evaluation.scores import (
    ClassifierMetrics,
    Evaluation,
    Report,
    build_reference,
    nearest_train_ratio,
    score_reconstructions,
    score_samples,
)
from training.lite0 import Lite0

logger = logging.getLogger(__name__)

_SPLIT_SEED = 0


def evaluate(folder: Path, options: EvaluationOptions | None = None) -> Evaluation:
    """Measure the pipeline in ``folder`` and write metrics.json, samples.png and the model card there.

    Every row is compared with the test images. real: training images that the classifiers never saw, the
    floor. reconstructions: those same images through the autoencoder. generated: from the pipeline.
    paired_test_reconstructions: of the very images they are compared with.

    Raises: ConfigError when the pipeline can't be measured, on this data or at all.
    """
    options = options or EvaluationOptions()
    pipeline = load_pipeline(folder, options)
    train, test = _load_data(pipeline, options)
    split = split_for_classifiers(train)
    generator = torch.Generator().manual_seed(options.seed)
    drawn = draw_subset(split.unseen, test.labels, options.num_images, generator)
    num_neighbours = _count_neighbours(options, test, drawn)
    classifiers: tuple[TrainedClassifier | None, ...] = (None,)  # one class is nothing to tell apart
    if len(test.class_names) > 1:
        classifiers = load_or_train_classifiers(
            options.data_name,
            split.seen,
            test,
            options.trainings,
            folder=options.classifier_folder,
            device=options.device,
        )
    test_reconstructed = reconstruct(pipeline.autoencoder, test.images, options)
    drawn_reconstructed = reconstruct(pipeline.autoencoder, drawn.images, options)
    labels = spread_labels(test.labels, options.num_images)
    started = time.perf_counter()
    generated = generate(pipeline, len(labels), lambda rows: Conditions(labels[rows, None]), options)
    seconds_per_image = (time.perf_counter() - started) / len(labels)

    results = {}
    for classifier in tqdm(classifiers, desc="score", unit="classifier"):
        reference = build_reference(classifier, test.images, num_neighbours=num_neighbours)
        results["pixels" if classifier is None else classifier.name] = ClassifierMetrics(
            test_accuracy=None if classifier is None else classifier.test_accuracy,
            verdict=None if classifier is None else classifier.verdict,
            real=score_samples(drawn.images, drawn.labels, reference),
            reconstructions=score_samples(drawn_reconstructed.images, drawn.labels, reference),
            generated=score_samples(generated, labels, reference),
            paired_test_reconstructions=score_samples(test_reconstructed.images, test.labels, reference),
            nearest_train_ratio=nearest_train_ratio(generated, train.images, reference),
        )
    report = Report.begin(
        pipeline,
        options,
        seconds_per_image=seconds_per_image,
        tokenizer=score_reconstructions(
            test.images, test_reconstructed.images, test_reconstructed.codes, pipeline.spec.codebook_size
        ),
        searched=score_searched(pipeline, test.images, options) if options.effort else None,
    )
    lite0 = None
    if options.with_lite0:
        lite0 = score_with_lite0(
            Lite0.load(),
            test=test.images,
            train=train.images,
            real=drawn.images,
            reconstructions=drawn_reconstructed.images,
            generated=generated,
            test_reconstructions=test_reconstructed.images,
        )
    evaluation = Evaluation(**vars(report), classifiers=results, num_neighbours=num_neighbours, lite0=lite0)
    save_samples(folder / "samples.png", test, test_reconstructed.images, generated, labels)
    evaluation.save(folder, render_evaluation(evaluation))
    return evaluation


def _count_neighbours(options: EvaluationOptions, test: ImageDataset, drawn: ImageDataset) -> int:
    """Return how many neighbours there are enough images for.

    Raises: DataError when there are too few for any.
    """
    fewest = min(len(test), len(drawn))
    if fewest < 2:
        raise DataError(
            f"data: {options.data} has {len(test)} pictures to test on and {len(drawn)} to train on, of the"
            " same classes, that classifiers can do without: at least 2 of each are needed, so add pictures"
        )
    if fewest <= options.num_neighbours:
        logger.warning("%d real pictures to compare with: figures of so few are rough", fewest)
    return min(options.num_neighbours, fewest - 1)


def spread_labels(labels: torch.Tensor, num_images: int) -> torch.Tensor:
    """Return num_images labels in the proportions of labels (N,), sorted."""
    positions = torch.arange(num_images) * len(labels) // num_images
    return labels.sort().values[positions]


def draw_subset(
    dataset: ImageDataset, labels: torch.Tensor, num_images: int, generator: torch.Generator
) -> ImageDataset:
    """Draw num_images at random, in the proportions of labels; a class gives what it has."""
    wanted = torch.bincount(spread_labels(labels, num_images), minlength=len(dataset.class_names))
    order = torch.randperm(len(dataset), generator=generator)
    shuffled = dataset.labels[order]
    rows = torch.cat([order[shuffled == label][:count] for label, count in enumerate(wanted.tolist())])
    return _take(dataset, rows)


@dataclass(frozen=True)
class ClassifierSplit:
    """The training split in two: what classifiers learn from, and real images they never saw."""

    seen: ImageDataset
    unseen: ImageDataset


def split_for_classifiers(train: ImageDataset) -> ClassifierSplit:
    """Keep a sixth of every class of the training split, always the same images, from the classifiers.

    Of two images or more, at least one.

    A classifier knows the images it learned from, so their features would make a floor that is too high.
    """
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    labels = train.labels[order]
    seen, unseen = [], []
    for label in range(len(train.class_names)):
        of_class = order[labels == label]
        num_unseen = max(len(of_class) // 6, int(len(of_class) > 1))
        unseen.append(of_class[:num_unseen])
        seen.append(of_class[num_unseen:])
    return ClassifierSplit(_take(train, torch.cat(seen)), _take(train, torch.cat(unseen)))


def _take(dataset: ImageDataset, rows: torch.Tensor) -> ImageDataset:
    return replace(dataset, images=dataset.images[rows], labels=dataset.labels[rows])


def _load_data(pipeline: Pipeline, options: EvaluationOptions) -> tuple[ImageDataset, ImageDataset]:
    """Return the training and the test split.

    Raises: DataError when their classes are not the pipeline's.
    """
    channels, image_size_px, _ = pipeline.autoencoder.signal_shape
    test = load_dataset(options.data, "test", image_size_px=image_size_px, channels=channels)
    known = pipeline.spec.labels
    if list(known.values()) != [test.class_names]:
        raise DataError(
            describe_other_labels(options.data, {next(iter(known), "class"): test.class_names}, known)
        )
    return load_dataset(options.data, "train", image_size_px=image_size_px, channels=channels), test
