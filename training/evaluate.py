"""Measure a pipeline against real images, with classifiers that had no part in its training."""

import json
import logging
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from models.conditioning import Conditions
from models.config import ConfigError, SamplerName, Sampling
from models.pipeline import Pipeline
from models.tokenizer import Tokenizer
from training.classifier import (
    DEFAULT_TRAININGS,
    ClassifierTraining,
    load_or_train_classifiers,
)
from training.data.dataset import ImageDataset, scale_to_unit
from training.data.sources import FASHION_MNIST, load_dataset
from training.model_card import render_evaluation, save_samples, write_card_section
from training.scores import (
    ClassifierMetrics,
    Evaluation,
    build_reference,
    nearest_train_ratio,
    score_reconstructions,
    score_samples,
)

logger = logging.getLogger(__name__)

_JUDGING_SEED = 0


@dataclass(frozen=True)
class EvaluationOptions:
    """What to measure with. None leaves a sampling setting to the pipeline's defaults.

    data: as ``load_dataset`` takes it. num_images: how many are generated, and at most how many real ones
    are drawn from the training split. effort: so many sweeps also search codes for a data set's images, where
    it has captions; the nearest are always measured.
    """

    data: str = "fashion-mnist"
    num_images: int = 10_000
    batch_size: int = 250
    seed: int = 0
    device: str = "cpu"
    num_steps: int | None = None
    guidance_scale: float | None = None
    sampler: SamplerName | None = None
    cache_interval: int | None = None
    effort: int = 0
    num_neighbours: int = 5
    trainings: tuple[ClassifierTraining, ...] = DEFAULT_TRAININGS
    classifier_folder: Path = Path("runs/classifiers")

    def __post_init__(self) -> None:
        if self.num_images <= self.num_neighbours:
            raise ValueError(
                f"num_images must exceed num_neighbours {self.num_neighbours}, got {self.num_images}"
            )
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.effort < 0:
            raise ValueError(f"effort must be at least 0, got {self.effort}")

    def sampling(self, defaults: Sampling) -> Sampling:
        """Return a pipeline's ``defaults`` with what is asked for in their place."""
        return replace(
            defaults,
            num_steps=self.num_steps or defaults.num_steps,
            guidance_scale=defaults.guidance_scale if self.guidance_scale is None else self.guidance_scale,
            sampler=self.sampler or defaults.sampler,
        )


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
    split = split_for_judging(train)
    classifiers = load_or_train_classifiers(
        _data_name(options),
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
    generated = generate(pipeline, labels, options)
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
        pipeline=pipeline.config.name,
        tokenizer_fingerprint=pipeline.config.tokenizer_fingerprint,
        data=_data_name(options),
        sampling=options.sampling(pipeline.config.defaults),
        cache_interval=options.cache_interval or 1,
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


@dataclass(frozen=True)
class Reconstructed:
    """codes: (N, h, w). images: (N, C, H, W) float in [-1, 1]. Both on the CPU."""

    codes: torch.Tensor
    images: torch.Tensor


@torch.inference_mode()
def reconstruct(tokenizer: Tokenizer, images: torch.Tensor, options: EvaluationOptions) -> Reconstructed:
    """Put images, (N, C, H, W) uint8 or float in [-1, 1], through the tokenizer and its codebook."""
    codes, reconstructions = [], []
    for start in tqdm(range(0, len(images), options.batch_size), desc="reconstruct", unit="batch"):
        batch = scale_to_unit(images[start : start + options.batch_size]).to(options.device)
        quantized = tokenizer.quantize(tokenizer.encode(batch))
        codes.append(quantized.codes.cpu())
        reconstructions.append(tokenizer.decode(quantized.latents).cpu())
    return Reconstructed(torch.cat(codes), torch.cat(reconstructions))


def generate(pipeline: Pipeline, labels: torch.Tensor, options: EvaluationOptions) -> torch.Tensor:
    """Generate one image for each of labels (N,): (N, C, H, W) float in [-1, 1], on the CPU."""
    images = []
    for index, start in enumerate(
        tqdm(range(0, len(labels), options.batch_size), desc="generate", unit="batch")
    ):
        batch = pipeline.generate(
            Conditions(labels[start : start + options.batch_size, None]),
            seed=options.seed + index,
            sampling=options.sampling(pipeline.config.defaults),
            cache_interval=options.cache_interval or 1,
        )
        images.append(batch.float().cpu())
    return torch.cat(images)


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
class JudgingSplit:
    """The training split in two: what classifiers learn from, and real images they never saw."""

    seen: ImageDataset
    unseen: ImageDataset


def split_for_judging(train: ImageDataset) -> JudgingSplit:
    """Keep a sixth of every class of the training split, always the same images, from the classifiers.

    A classifier knows the images it learned from, so their features would make a floor that is too high.
    """
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(_JUDGING_SEED))
    labels = train.labels[order]
    seen, unseen = [], []
    for label in range(len(train.class_names)):
        of_class = order[labels == label]
        num_unseen = len(of_class) // 6
        unseen.append(of_class[:num_unseen])
        seen.append(of_class[num_unseen:])
    return JudgingSplit(_take(train, torch.cat(seen)), _take(train, torch.cat(unseen)))


def _take(dataset: ImageDataset, rows: torch.Tensor) -> ImageDataset:
    return replace(dataset, images=dataset.images[rows], labels=dataset.labels[rows])


def _data_name(options: EvaluationOptions) -> str:
    """Return a name that tells nothing of this machine's folders."""
    name = options.data.partition(":")[0]
    return name if name == FASHION_MNIST else Path(options.data).resolve().name


def _load_data(pipeline: Pipeline, options: EvaluationOptions) -> tuple[ImageDataset, ImageDataset]:
    config = pipeline.config
    shape = (config.tokenizer.image_size_px, config.tokenizer.image_channels)
    train, test = (
        load_dataset(options.data, split, image_size_px=shape[0], channels=shape[1])
        for split in ("train", "test")
    )
    if test.class_names != config.class_names:
        raise ConfigError(
            f"the classes of {options.data} {test.class_names} are not the pipeline's {config.class_names}"
        )
    return train, test
