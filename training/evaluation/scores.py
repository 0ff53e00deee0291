"""What an evaluation measures, and how a set of images is scored against real ones."""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from models.options import Options
from models.pipeline import Pipeline
from training.data.dataset import scale_to_unit
from training.evaluation.classifier import TrainedClassifier, classify, measure_accuracy
from training.evaluation.metrics import (
    FeatureStatistics,
    Manifold,
    build_manifold,
    frechet_distance,
    measure_codebook_use,
    measure_manifolds,
    measure_squared_errors,
    measure_ssim,
    measure_statistics,
    nearest_distances,
    psnr_db,
    small_pixels,
)
from training.evaluation.model_card import CARD_FILE, write_card_section
from training.evaluation.options import EvaluationOptions
from training.evaluation.verdict import Verdict

if TYPE_CHECKING:
    from training.evaluation.lite0_scores import Lite0Scores

logger = logging.getLogger(__name__)

_BATCH_SIZE = 1000
_MIN_DISTANCE = 1e-6


@dataclass(frozen=True)
class TokenizerMetrics:
    """Reconstruction of the test split. Without a codebook, there are no figures of its use.

    psnr_db_mean_of_images: each image's PSNR, averaged. psnr_db_of_mean_error: PSNR of the squared error
    averaged over all images; lower, since the worst images weigh most.
    """

    num_images: int
    psnr_db_mean_of_images: float
    psnr_db_of_mean_error: float
    ssim: float
    codebook_size: int | None
    codebook_used_share: float | None
    codebook_perplexity: float | None


@dataclass(frozen=True)
class SampleMetrics:
    """A set of images against the real test images, in the features of one classifier.

    In pixels, without a classifier, there is neither accuracy nor Fréchet distance.
    """

    num_images: int
    class_accuracy: float | None
    frechet_distance: float | None
    precision: float
    recall: float
    density: float
    coverage: float


@dataclass(frozen=True)
class ClassifierMetrics:
    """Rows of one classifier's table. Their meaning is in ``evaluate``.

    test_accuracy and verdict: None where pixels are compared, without a classifier. nearest_train_ratio:
    median distance of generated images to the nearest training image over that of test images; far below 1
    tells of memorised training images.
    """

    test_accuracy: float | None
    real: SampleMetrics
    reconstructions: SampleMetrics
    generated: SampleMetrics
    paired_test_reconstructions: SampleMetrics
    nearest_train_ratio: float
    verdict: Verdict | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What every evaluation says beside its own measures: the content of metrics.json.

    tokenizer and searched: of codes nearest to the latents, and of those searched for with ``effort``.
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
    tokenizer: TokenizerMetrics
    effort: int = 0
    searched: TokenizerMetrics | None = None

    @classmethod
    def begin(
        cls,
        pipeline: Pipeline,
        options: EvaluationOptions,
        *,
        seconds_per_image: float,
        tokenizer: TokenizerMetrics,
        searched: TokenizerMetrics | None,
    ) -> "Report":
        """Return what is known of any pipeline."""
        return Report(
            pipeline=pipeline.spec.name,
            tokenizer_fingerprint=pipeline.autoencoder.fingerprint(),
            data=options.data_name,
            sampling=options.sampling(pipeline.spec.defaults),
            seed=options.seed,
            device=options.device,
            num_threads=torch.get_num_threads(),
            batch_size=options.batch_size,
            seconds_per_image=seconds_per_image,
            tokenizer=tokenizer,
            effort=options.effort,
            searched=searched,
        )

    def save(self, folder: Path, section: str) -> None:
        """Write metrics.json, and ``section`` into the model card."""
        (folder / "metrics.json").write_text(json.dumps(asdict(self), indent=2) + "\n")
        write_card_section(folder / CARD_FILE, self.pipeline, section)
        logger.info("evaluated pipeline=%s", self.pipeline)


@dataclass(frozen=True, kw_only=True)
class Evaluation(Report):
    """Everything that ``evaluate`` measures."""

    classifiers: dict[str, ClassifierMetrics]
    num_neighbours: int = 5
    lite0: "Lite0Scores | None" = None


@dataclass(frozen=True)
class Reference:
    """The real test images as one classifier sees them, or their pixels, without one."""

    classifier: TrainedClassifier | None
    statistics: FeatureStatistics
    manifold: Manifold

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return features (N, D) of images (N, C, H, W), uint8 or float in [-1, 1]."""
        return _features(self.classifier, images)


def build_reference(
    classifier: TrainedClassifier | None, test_images: torch.Tensor, *, num_neighbours: int = 5
) -> Reference:
    """Prepare to score against test_images, (N, C, H, W) uint8 or float in [-1, 1]."""
    features = _features(classifier, test_images)
    return Reference(classifier, measure_statistics(features), build_manifold(features, num_neighbours))


def score_samples(images: torch.Tensor, labels: torch.Tensor, reference: Reference) -> SampleMetrics:
    """Score images, (N, C, H, W) uint8 or float in [-1, 1], whose classes should be labels (N,)."""
    accuracy = distance = None
    if reference.classifier is None:
        features = reference.features(images)
    else:
        classification = classify(reference.classifier.model, images)
        features = classification.features
        accuracy = measure_accuracy(classification, labels)
        distance = frechet_distance(measure_statistics(features), reference.statistics)
    scores = measure_manifolds(
        reference.manifold, build_manifold(features, reference.manifold.num_neighbours)
    )
    return SampleMetrics(
        num_images=len(images),
        class_accuracy=accuracy,
        frechet_distance=distance,
        precision=scores.precision,
        recall=scores.recall,
        density=scores.density,
        coverage=scores.coverage,
    )


def score_reconstructions(
    images: torch.Tensor,
    reconstructions: torch.Tensor,
    codes: torch.Tensor | None,
    codebook_size: int | None,
) -> TokenizerMetrics:
    """Score an autoencoder: images and reconstructions (N, C, H, W), codes (N, h, w) if it has some."""
    errors, similarities = [], []
    for start in range(0, len(images), _BATCH_SIZE):
        rows = slice(start, start + _BATCH_SIZE)
        targets = scale_to_unit(images[rows])
        errors.append(measure_squared_errors(reconstructions[rows], targets))
        similarities.append(measure_ssim(reconstructions[rows].double(), targets.double()))
    squared_errors = torch.cat(errors)
    use = None
    if codes is not None and codebook_size is not None:
        use = measure_codebook_use(codes, codebook_size)
    return TokenizerMetrics(
        num_images=len(images),
        psnr_db_mean_of_images=psnr_db(squared_errors).mean().item(),
        psnr_db_of_mean_error=psnr_db(squared_errors.mean()).item(),
        ssim=torch.cat(similarities).mean().item(),
        codebook_size=codebook_size,
        codebook_used_share=use.used_share if use else None,
        codebook_perplexity=use.perplexity if use else None,
    )


def nearest_train_ratio(generated: torch.Tensor, train_images: torch.Tensor, reference: Reference) -> float:
    """Return generated images' median distance to the nearest training image over that of test images."""
    return distance_ratio(
        reference.features(generated), reference.manifold.features, reference.features(train_images)
    )


def distance_ratio(features: torch.Tensor, real: torch.Tensor, train: torch.Tensor) -> float:
    """Return the median distance of features (N, D) to the nearest of train (M, D), over that of real ones.

    1 where both are 0, for lack of anything better; infinite distances don't go into JSON, so 0 is raised.
    """
    of_real = nearest_distances(real, train).median().clamp(min=_MIN_DISTANCE)
    return float(nearest_distances(features, train).median().clamp(min=_MIN_DISTANCE) / of_real)


def _features(classifier: TrainedClassifier | None, images: torch.Tensor) -> torch.Tensor:
    return small_pixels(images) if classifier is None else classify(classifier.model, images).features
