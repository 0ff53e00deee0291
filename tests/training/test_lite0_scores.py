"""What EfficientNet-Lite0 makes of sets of pictures."""

import math

import pytest
import torch

from training.evaluation.lite0_scores import class_score, score_with_lite0
from training.lite0 import Lite0


def test_the_class_score_is_one_for_one_class_and_their_number_for_sure_and_varied_ones() -> None:
    assert class_score(torch.full((40, 5), 0.2)) == pytest.approx(1)
    assert class_score(torch.eye(5).repeat(8, 1)) == pytest.approx(4)  # four rows a part
    assert class_score(torch.eye(4).repeat(10, 1)) == pytest.approx(4)
    half = torch.tensor([[0.75, 0.25], [0.25, 0.75]]).repeat(10, 1)
    expected = math.exp(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert class_score(half) == pytest.approx(expected)


@pytest.mark.ci  # eight roots of matrices of 1,280 rows
def test_the_nearer_set_scores_nearer() -> None:
    generator = torch.Generator().manual_seed(0)
    test = torch.randint(0, 256, (8, 3, 32, 32), generator=generator, dtype=torch.uint8)
    noise = torch.rand(test.shape, generator=generator) * 2 - 1
    near = (test / 127.5 - 1 + 0.1 * noise).clamp(-1, 1)
    scores = score_with_lite0(
        Lite0.load(),
        test=test,
        train=test,
        real=test,
        reconstructions=near,
        generated=torch.zeros(8, 3, 32, 32),
        test_reconstructions=near,
    )
    distances = [each.frechet_distance for each in (scores.real, scores.reconstructions, scores.generated)]
    assert distances[0] == pytest.approx(0, abs=1e-3)
    assert distances == sorted(distances)
    assert 0 < scores.perceptual_distance < 1
    assert scores.generated.class_score == pytest.approx(1, abs=1e-3)
