"""Measures in the features of EfficientNet-Lite0, for photographs; never to be called FID or IS.

FID and IS are figures in the features of another network, Inception: these don't compare with them.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tqdm import tqdm

from training.data.dataset import scale_to_unit
from training.evaluation.metrics import frechet_distance, measure_statistics
from training.evaluation.scores import distance_ratio
from training.lite0 import Lite0, perceptual_distance

_TRAINED_PX = 224  # a side
_BATCH_SIZE = 32
_SPLITS = 10  # of images, for the mean of their scores


@dataclass(frozen=True)
class Lite0SampleScores:
    """A set of images against the real test images.

    class_score: exp of the mean divergence of an image's classes of ImageNet from those of the set
    (Salimans et al. 2016, arXiv:1606.03498), over ten parts: higher is surer and more varied.
    """

    num_images: int
    frechet_distance: float
    class_score: float


@dataclass(frozen=True)
class Lite0Scores:
    """What the judge makes of a pipeline; the rows are as in ``evaluate``.

    perceptual_distance: of test images' reconstructions, in the mean (``lite0.perceptual_distance``).
    nearest_train_ratio: as in ``scores.ClassifierMetrics``.
    """

    perceptual_distance: float
    real: Lite0SampleScores
    reconstructions: Lite0SampleScores
    generated: Lite0SampleScores
    paired_test_reconstructions: Lite0SampleScores
    nearest_train_ratio: float


@torch.inference_mode()
def score_with_lite0(
    judge: Lite0,
    *,
    test: torch.Tensor,
    train: torch.Tensor,
    real: torch.Tensor,
    reconstructions: torch.Tensor,
    generated: torch.Tensor,
    test_reconstructions: torch.Tensor,
) -> Lite0Scores:
    """Score sets of images (N, C, H, W), uint8 or float in [-1, 1].

    test: what is compared with; train: what the pipeline learned from.
    """
    of_test, of_train = lite0_features(judge, test, "test"), lite0_features(judge, train, "train")
    reference = measure_statistics(of_test)

    def score(features: torch.Tensor) -> Lite0SampleScores:
        distance = frechet_distance(measure_statistics(features), reference)
        return Lite0SampleScores(len(features), distance, class_score(judge.classify(features).softmax(1)))

    of_generated = lite0_features(judge, generated, "generated")
    return Lite0Scores(
        perceptual_distance=mean_perceptual_distance(judge, test_reconstructions, test),
        real=score(lite0_features(judge, real, "real")),
        reconstructions=score(lite0_features(judge, reconstructions, "reconstructed")),
        generated=score(of_generated),
        paired_test_reconstructions=score(lite0_features(judge, test_reconstructions, "paired")),
        nearest_train_ratio=distance_ratio(of_generated, of_test, of_train),
    )


@torch.inference_mode()
def mean_perceptual_distance(judge: Lite0, images: torch.Tensor, others: torch.Tensor) -> float:
    """Return the mean of ``perceptual_distance`` over pairs (N, C, H, W), at their own size."""
    pairs = zip(images.split(_BATCH_SIZE), others.split(_BATCH_SIZE), strict=True)
    distances = [perceptual_distance(judge, _floats(mine), _floats(theirs)) for mine, theirs in pairs]
    return float(torch.cat(distances).mean())


def class_score(probabilities: torch.Tensor) -> float:
    """Return exp E KL(p(class | image) ‖ p(class)) of probabilities (N, classes), the mean of ten parts."""
    parts = probabilities.double().split(-(-len(probabilities) // _SPLITS))
    scores = []
    for part in parts:
        of_all = part.mean(0)
        divergence = torch.special.xlogy(part, part) - torch.special.xlogy(part, of_all)
        scores.append(divergence.sum(1).mean().exp())
    return float(torch.stack(scores).mean())


def lite0_features(judge: Lite0, images: torch.Tensor, title: str) -> torch.Tensor:
    """Return features (N, 1280) of images, enlarged or made smaller to what the judge was trained at."""
    batches = tqdm(images.split(_BATCH_SIZE), desc=f"Lite0, {title}", unit="batch", leave=False)
    size = (_TRAINED_PX, _TRAINED_PX)
    resized = (
        F.interpolate(_floats(batch), size, mode="bicubic", antialias=True).clamp(-1, 1) for batch in batches
    )
    return torch.cat([judge.features(batch) for batch in resized])


def _floats(images: torch.Tensor) -> torch.Tensor:
    return images if images.is_floating_point() else scale_to_unit(images)
