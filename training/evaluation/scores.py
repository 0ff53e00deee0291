"""What an evaluation measures, and how a set of images is scored against real ones."""

from dataclasses import dataclass

import torch

from models.options import Options
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
)

_BATCH_SIZE = 1000


@dataclass(frozen=True)
class TokenizerMetrics:
    """Reconstruction of the test split.

    psnr_db_mean_of_images: each image's PSNR, averaged. psnr_db_of_mean_error: PSNR of the squared error
    averaged over all images; lower, since the worst images weigh most.
    """

    num_images: int
    psnr_db_mean_of_images: float
    psnr_db_of_mean_error: float
    ssim: float
    codebook_size: int
    codebook_used_share: float
    codebook_perplexity: float


@dataclass(frozen=True)
class SampleMetrics:
    """A set of images against the real test images, in the features of one classifier."""

    num_images: int
    class_accuracy: float
    frechet_distance: float
    precision: float
    recall: float
    density: float
    coverage: float


@dataclass(frozen=True)
class ClassifierMetrics:
    """Rows of one classifier's table. Their meaning is in ``evaluate``.

    nearest_train_ratio: median distance of generated images to the nearest training image over that of
    test images; far below 1 tells of memorised training images.
    """

    test_accuracy: float
    real: SampleMetrics
    reconstructions: SampleMetrics
    generated: SampleMetrics
    paired_test_reconstructions: SampleMetrics
    nearest_train_ratio: float


@dataclass(frozen=True)
class Evaluation:
    """Everything that ``evaluate`` measures; the content of metrics.json."""

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
    classifiers: dict[str, ClassifierMetrics]


@dataclass(frozen=True)
class Reference:
    """The real test images as one classifier sees them."""

    classifier: TrainedClassifier
    statistics: FeatureStatistics
    manifold: Manifold


def build_reference(
    classifier: TrainedClassifier, test_images: torch.Tensor, *, num_neighbours: int = 5
) -> Reference:
    """Prepare to score against test_images, (N, C, H, W) uint8 or float in [-1, 1]."""
    features = classify(classifier.model, test_images).features
    return Reference(classifier, measure_statistics(features), build_manifold(features, num_neighbours))


def score_samples(images: torch.Tensor, labels: torch.Tensor, reference: Reference) -> SampleMetrics:
    """Score images, (N, C, H, W) uint8 or float in [-1, 1], whose classes should be labels (N,)."""
    classification = classify(reference.classifier.model, images)
    features = classification.features
    scores = measure_manifolds(
        reference.manifold, build_manifold(features, reference.manifold.num_neighbours)
    )
    return SampleMetrics(
        num_images=len(images),
        class_accuracy=measure_accuracy(classification, labels),
        frechet_distance=frechet_distance(measure_statistics(features), reference.statistics),
        precision=scores.precision,
        recall=scores.recall,
        density=scores.density,
        coverage=scores.coverage,
    )


def score_reconstructions(
    images: torch.Tensor, reconstructions: torch.Tensor, codes: torch.Tensor, codebook_size: int
) -> TokenizerMetrics:
    """Score a tokenizer: images and reconstructions (N, C, H, W), codes (N, h, w)."""
    errors, similarities = [], []
    for start in range(0, len(images), _BATCH_SIZE):
        rows = slice(start, start + _BATCH_SIZE)
        targets = scale_to_unit(images[rows])
        errors.append(measure_squared_errors(reconstructions[rows], targets))
        similarities.append(measure_ssim(reconstructions[rows].double(), targets.double()))
    squared_errors = torch.cat(errors)
    use = measure_codebook_use(codes, codebook_size)
    return TokenizerMetrics(
        num_images=len(images),
        psnr_db_mean_of_images=psnr_db(squared_errors).mean().item(),
        psnr_db_of_mean_error=psnr_db(squared_errors.mean()).item(),
        ssim=torch.cat(similarities).mean().item(),
        codebook_size=codebook_size,
        codebook_used_share=use.used_share,
        codebook_perplexity=use.perplexity,
    )


def nearest_train_ratio(generated: torch.Tensor, train_images: torch.Tensor, reference: Reference) -> float:
    """Return generated images' median distance to the nearest training image over that of test images."""
    model = reference.classifier.model
    train_features = classify(model, train_images).features
    of_generated = nearest_distances(classify(model, generated).features, train_features)
    of_test = nearest_distances(reference.manifold.features, train_features)
    return (of_generated.median() / of_test.median()).item()
