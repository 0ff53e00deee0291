"""Measure a pipeline against real images, with classifiers that had no part in its training."""

import json
import logging
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from models.conditioning import Conditions
from models.options import ConfigError
from models.pipeline import Pipeline
from training.data.dataset import ImageDataset
from training.data.sources import load_dataset
from training.evaluation.classifier import load_or_train_classifiers
from training.evaluation.images import generate, reconstruct
from training.evaluation.model_card import render_evaluation, save_samples, write_card_section
from training.evaluation.options import EvaluationOptions
from training.evaluation.scores import (
    ClassifierMetrics,
    Evaluation,
    build_reference,
    nearest_train_ratio,
    score_reconstructions,
    score_samples,
)

logger = logging.getLogger(__name__)

_SPLIT_SEED = 0


def evaluate(folder: Path, options: EvaluationOptions | None = None) -> Evaluation:
    """Measure the pipeline in ``folder`` and write metrics.json, samples.png and the model card there.

    Every row is compared with the test images. real: training images that the classifiers never saw, the
    floor. reconstructions: those same images through the tokenizer. generated: from the pipeline.
    paired_test_reconstructions: of the very images they are compared with.
    """
    options = options or EvaluationOptions()
    pipeline = Pipeline.load(folder, device=options.device)
    tokenizer = pipeline.tokenizer
    train, test = _load_data(pipeline, options)
    split = split_for_classifiers(train)
    classifiers = load_or_train_classifiers(
        options.data_name,
        split.seen,
        test,
        options.trainings,
        folder=options.classifier_folder,
        device=options.device,
    )
    generator = torch.Generator().manual_seed(options.seed)
    drawn = draw_subset(split.unseen, test.labels, options.num_images, generator)
    test_reconstructed = reconstruct(tokenizer, test.images, options)
    drawn_reconstructed = reconstruct(tokenizer, drawn.images, options)
    labels = spread_labels(test.labels, options.num_images)
    started = time.perf_counter()
    generated = generate(pipeline, len(labels), lambda rows: Conditions(labels[rows, None]), options)
    seconds_per_image = (time.perf_counter() - started) / len(labels)

    results = {}
    for classifier in tqdm(classifiers, desc="score", unit="classifier"):
        reference = build_reference(classifier, test.images, num_neighbours=options.num_neighbours)
        results[classifier.name] = ClassifierMetrics(
            test_accuracy=classifier.test_accuracy,
            real=score_samples(drawn.images, drawn.labels, reference),
            reconstructions=score_samples(drawn_reconstructed.images, drawn.labels, reference),
            generated=score_samples(generated, labels, reference),
            paired_test_reconstructions=score_samples(test_reconstructed.images, test.labels, reference),
            nearest_train_ratio=nearest_train_ratio(generated, train.images, reference),
        )
    evaluation = Evaluation(
        pipeline=pipeline.spec.name,
        tokenizer_fingerprint=tokenizer.fingerprint(),
        data=options.data_name,
        sampling=options.sampling(pipeline.spec.defaults),
        seed=options.seed,
        device=options.device,
        num_threads=torch.get_num_threads(),
        batch_size=options.batch_size,
        seconds_per_image=seconds_per_image,
        tokenizer=score_reconstructions(
            test.images, test_reconstructed.images, test_reconstructed.codes, tokenizer.config.codebook_size
        ),
        classifiers=results,
    )
    (folder / "metrics.json").write_text(json.dumps(asdict(evaluation), indent=2) + "\n")
    save_samples(folder / "samples.png", test, test_reconstructed.images, generated, labels)
    write_card_section(folder / "README.md", evaluation.pipeline, render_evaluation(evaluation))
    logger.info("evaluated pipeline=%s", evaluation.pipeline)
    return evaluation


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

    A classifier knows the images it learned from, so their features would make a floor that is too high.
    """
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    labels = train.labels[order]
    seen, unseen = [], []
    for label in range(len(train.class_names)):
        of_class = order[labels == label]
        num_unseen = len(of_class) // 6
        unseen.append(of_class[:num_unseen])
        seen.append(of_class[num_unseen:])
    return ClassifierSplit(_take(train, torch.cat(seen)), _take(train, torch.cat(unseen)))


def _take(dataset: ImageDataset, rows: torch.Tensor) -> ImageDataset:
    return replace(dataset, images=dataset.images[rows], labels=dataset.labels[rows])


def _load_data(pipeline: Pipeline, options: EvaluationOptions) -> tuple[ImageDataset, ImageDataset]:
    """Return the training and the test split.

    Raises: ConfigError when their classes are not the pipeline's.
    """
    channels, image_size_px, _ = pipeline.tokenizer.signal_shape
    train, test = (
        load_dataset(options.data, split, image_size_px=image_size_px, channels=channels)
        for split in ("train", "test")
    )
    known = list(pipeline.spec.labels.values())
    if known != [test.class_names]:
        raise ConfigError(f"the classes of {options.data} {test.class_names} are not the pipeline's {known}")
    return train, test
