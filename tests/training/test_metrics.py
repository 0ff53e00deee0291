import math

import pytest
import torch

from training.evaluation.metrics import (
    FeatureStatistics,
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


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_psnr_of_a_constant_error_has_its_closed_form() -> None:
    targets = torch.zeros(2, 1, 4, 4)
    errors = measure_squared_errors(targets + torch.tensor([0.2, 0.02])[:, None, None, None], targets)
    # Range 2 over error 0.2 is a factor of 10: 20 dB. float32 inputs keep 7 digits.
    assert psnr_db(errors).tolist() == pytest.approx([20.0, 40.0], abs=1e-5)


def test_ssim_of_equal_images_is_one() -> None:
    images = normal(3, 3, 16, 16).double().clamp(-1, 1)
    assert measure_ssim(images, images).tolist() == pytest.approx([1.0] * 3, abs=1e-9)


def test_ssim_matches_its_definition_at_one_window() -> None:
    x, y = normal(1, 1, 11, 11).double(), normal(1, 1, 11, 11, seed=1).double()
    line = torch.tensor([math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)], dtype=torch.float64)
    weights = torch.outer(line, line) / line.sum() ** 2
    mean_x, mean_y = (weights * x[0, 0]).sum(), (weights * y[0, 0]).sum()
    variance_x = (weights * (x[0, 0] - mean_x) ** 2).sum()
    variance_y = (weights * (y[0, 0] - mean_y) ** 2).sum()
    covariance = (weights * (x[0, 0] - mean_x) * (y[0, 0] - mean_y)).sum()
    c1, c2 = 0.02**2, 0.06**2
    expected = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    expected /= (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    assert measure_ssim(x, y).item() == pytest.approx(expected.item(), abs=1e-9)


def test_codebook_use_counts_used_codes_and_their_evenness() -> None:
    even = measure_codebook_use(torch.arange(8).repeat(3).reshape(2, 3, 4), codebook_size=16)
    assert even.used_share == 0.5
    assert even.perplexity == pytest.approx(8)
    assert measure_codebook_use(torch.zeros(5, dtype=torch.int64), 4).perplexity == pytest.approx(1)


def test_frechet_distance_of_diagonal_gaussians_has_its_closed_form() -> None:
    first = FeatureStatistics(torch.zeros(3).double(), torch.diag(torch.tensor([1.0, 4.0, 9.0]).double()))
    second = FeatureStatistics(torch.ones(3).double(), torch.diag(torch.tensor([4.0, 4.0, 1.0]).double()))
    # |1|² + Σ (√a − √b)² = 3 + 1 + 0 + 4
    assert frechet_distance(first, second) == pytest.approx(8, abs=1e-9)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_matches_the_general_matrix_root() -> None:
    first = measure_statistics(normal(200, 5) @ normal(5, 5, seed=1))
    second = measure_statistics(normal(200, 5, seed=2) @ normal(5, 5, seed=3) + 0.3)
    eigenvalues = torch.linalg.eigvals(first.covariance @ second.covariance)
    expected = (first.mean - second.mean).square().sum() + first.covariance.trace()
    expected += second.covariance.trace() - 2 * eigenvalues.real.sqrt().sum()
    assert frechet_distance(first, second) == pytest.approx(expected.item(), rel=1e-9)
    assert frechet_distance(second, first) == pytest.approx(expected.item(), rel=1e-9)


def test_manifold_scores_match_a_direct_count() -> None:
    real, samples, k = normal(60, 4), normal(50, 4, seed=1) * 1.5, 3
    scores = measure_manifolds(build_manifold(real, k), build_manifold(samples, k))

    def radii(points: torch.Tensor) -> list[float]:
        return [
            sorted(torch.dist(a, b).item() for j, b in enumerate(points) if j != i)[k - 1]
            for i, a in enumerate(points)
        ]

    inside_real = [
        [torch.dist(a, b).item() <= r for b in samples] for a, r in zip(real, radii(real), strict=True)
    ]
    inside_sample = [
        [torch.dist(a, b).item() <= r for a in real] for b, r in zip(samples, radii(samples), strict=True)
    ]
    assert scores.precision == pytest.approx(sum(map(any, zip(*inside_real, strict=True))) / 50)
    assert scores.recall == pytest.approx(sum(map(any, zip(*inside_sample, strict=True))) / 60)
    assert scores.density == pytest.approx(sum(map(sum, inside_real)) / (k * 50))
    assert scores.coverage == pytest.approx(sum(map(any, inside_real)) / 60)


def test_manifold_scores_do_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    real, samples = normal(70, 4), normal(70, 4, seed=1)
    whole = measure_manifolds(build_manifold(real), build_manifold(samples))
    monkeypatch.setattr("training.evaluation.metrics._BLOCK_ROWS", 16)
    assert measure_manifolds(build_manifold(real), build_manifold(samples)) == whole


def test_collapsed_samples_keep_precision_and_lose_recall_and_coverage() -> None:
    real = build_manifold(normal(500, 4))
    collapsed = build_manifold(normal(500, 4, seed=1) * 0.05)
    scores = measure_manifolds(real, collapsed)
    assert scores.precision > 0.95
    assert scores.recall < 0.05
    assert scores.coverage < 0.2


def test_nearest_distances_match_cdist() -> None:
    features, others = normal(30, 6), normal(40, 6, seed=1)
    expected = torch.cdist(features, others, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1)
    torch.testing.assert_close(nearest_distances(features, others), expected, atol=1e-4, rtol=1e-4)


def test_too_few_features_for_a_manifold_are_refused() -> None:
    with pytest.raises(ValueError, match="more than num_neighbours 5"):
        build_manifold(normal(5, 2))
