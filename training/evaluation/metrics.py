"""Measures of reconstructed and of generated images."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from models.autoencoders.similarity import measure_similarity
from training.data.dataset import scale_to_unit

_BLOCK_ROWS = 2000
_SMALL_PX = 16
_DATA_RANGE = 2.0  # images lie in [-1, 1]


@dataclass(frozen=True)
class CodebookUse:
    """used_share: share of the codebook that occurs at all, in [0, 1].

    perplexity: exp of the entropy of the codes' frequencies, from 1 to the codebook's size.
    """

    used_share: float
    perplexity: float


@dataclass(frozen=True)
class ManifoldScores:
    """How samples and real images cover each other; see ``measure_manifolds``."""

    precision: float
    recall: float
    density: float
    coverage: float


def measure_squared_errors(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Measure the mean squared error of each image, (B,) float64. Both: (B, C, H, W) float in [-1, 1]."""
    return (images.double() - targets.double()).square().mean(dim=(1, 2, 3))


def psnr_db(squared_errors: torch.Tensor) -> torch.Tensor:
    """Return the peak signal-to-noise ratio in dB of mean squared errors of images in [-1, 1]."""
    return 10 * torch.log10(_DATA_RANGE**2 / squared_errors)


def measure_ssim(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Measure the structural similarity of each image, (B,), averaged over channels and positions.

    Both: (B, C, H, W) float in [-1, 1], at least 11 pixels a side; see models/autoencoders/similarity.py.
    """
    return measure_similarity(images, targets).mean(dim=(1, 2, 3))


def measure_codebook_use(codes: torch.Tensor, codebook_size: int) -> CodebookUse:
    """Measure how evenly a codebook is used. codes: integers in [0, codebook_size), any shape."""
    counts = torch.bincount(codes.flatten().cpu(), minlength=codebook_size).double()
    frequencies = counts / counts.sum()
    entropy = -torch.special.xlogy(frequencies, frequencies).sum()
    return CodebookUse(
        used_share=(counts > 0).double().mean().item(),
        perplexity=entropy.exp().item(),
    )


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean (D,) and unbiased covariance (D, D) of features, float64."""

    mean: torch.Tensor
    covariance: torch.Tensor


def measure_statistics(features: torch.Tensor) -> FeatureStatistics:
    """Measure mean and covariance of features (N, D), N at least 2."""
    features = features.double()
    return FeatureStatistics(mean=features.mean(dim=0), covariance=torch.cov(features.T))


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """Return the squared 2-Wasserstein distance of two Gaussians (Heusel et al. 2017, arXiv:1706.08500).

    The trace of the matrix root is the sum of the roots of the eigenvalues of √A·B·√A, which is
    symmetric and shares its eigenvalues with A·B; so no general matrix root is needed.
    """
    values, vectors = torch.linalg.eigh(first.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    product = root @ second.covariance @ root
    eigenvalues = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0)
    traces = first.covariance.trace() + second.covariance.trace()
    distance = (first.mean - second.mean).square().sum() + traces - 2 * eigenvalues.sqrt().sum()
    return float(distance.clamp(min=0))


@dataclass(frozen=True)
class Manifold:
    """Features (N, D) and the squared distance (N,) of each to its k-th nearest other one."""

    features: torch.Tensor
    squared_radii: torch.Tensor
    num_neighbours: int


def build_manifold(features: torch.Tensor, num_neighbours: int = 5) -> Manifold:
    """Estimate the manifold of features (N, D), N greater than num_neighbours, by balls."""
    if len(features) <= num_neighbours:
        raise ValueError(f"more than num_neighbours {num_neighbours} features needed, got {len(features)}")
    radii = []
    for start in range(0, len(features), _BLOCK_ROWS):
        block = features[start : start + _BLOCK_ROWS]
        distances = _squared_distances(block, features)
        rows = torch.arange(len(block), device=features.device)
        distances[rows, start + rows] = torch.inf  # not its own neighbour
        radii.append(distances.topk(num_neighbours, dim=1, largest=False).values[:, -1])
    return Manifold(features, torch.cat(radii), num_neighbours)


def measure_manifolds(real: Manifold, samples: Manifold) -> ManifoldScores:
    """Compare samples with real images by the balls around each.

    Precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991): the share of samples in some real
    ball, and of real images in some sample's ball. Density and coverage (Naeem et al. 2020,
    arXiv:2002.09797): the mean number of real balls around a sample over k, which may exceed 1, and the
    share of real balls that hold a sample.
    """
    num_balls = 0
    is_real_covered, is_real_recalled, is_sample_precise = [], [], []
    for start in range(0, len(real.features), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        distances = _squared_distances(real.features[block], samples.features)  # (block, samples)
        in_real_ball = distances <= real.squared_radii[block, None]
        num_balls += int(in_real_ball.sum())
        is_real_covered.append(in_real_ball.any(dim=1))
        is_sample_precise.append(in_real_ball.any(dim=0))
        is_real_recalled.append((distances <= samples.squared_radii).any(dim=1))
    return ManifoldScores(
        precision=torch.stack(is_sample_precise).any(dim=0).double().mean().item(),
        recall=torch.cat(is_real_recalled).double().mean().item(),
        density=num_balls / (real.num_neighbours * len(samples.features)),
        coverage=torch.cat(is_real_covered).double().mean().item(),
    )


def nearest_distances(features: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Measure the distance (N,) of each of features (N, D) to the nearest of others (M, D)."""
    num_rows = max(1, _BLOCK_ROWS * 10_000 // len(others))
    blocks = [
        _squared_distances(features[start : start + num_rows], others).amin(dim=1)
        for start in range(0, len(features), num_rows)
    ]
    return torch.cat(blocks).sqrt()


def small_pixels(images: torch.Tensor) -> torch.Tensor:
    """Return pixels (N, D) of small copies, at most 16 a side, of images (N, C, H, W), as features."""
    height, width = (min(side, _SMALL_PX) for side in images.shape[-2:])
    pooled = [F.adaptive_avg_pool2d(scale_to_unit(part), (height, width)) for part in images.split(1000)]
    return torch.cat(pooled).flatten(1)


def _squared_distances(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return (N, M) from (N, D) and (M, D), never negative."""
    centre = second.mean(dim=0)  # less cancellation between large squares
    first, second = first - centre, second - centre
    squares = first.square().sum(dim=1)[:, None] + second.square().sum(dim=1)
    return torch.addmm(squares, first, second.T, alpha=-2).clamp_(min=0)
