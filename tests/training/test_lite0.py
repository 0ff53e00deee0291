"""EfficientNet-Lite0 with its published weights: what it sees, and how far apart it finds pictures.

daisy.webp: by Jon Bunting, https://www.flickr.com/photos/84744710@N06/8710109684/, CC-BY-2.0, made smaller.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.checkpoint import CheckpointError
from models.media.base import medium_of
from models.media.image import ImageSpec
from training.lite0 import Lite0, perceptual_distance

DAISY = 985  # of ImageNet's classes


@pytest.fixture(scope="module")
def judge() -> Lite0:
    return Lite0.load()


@pytest.fixture(scope="module")
def daisy() -> Tensor:
    data = Path(__file__).with_name("daisy.webp").read_bytes()
    medium = medium_of("image")
    return torch.from_numpy(
        medium.to_signal(medium.load(data, ImageSpec(width_px=224, height_px=224, channels=3)))
    )[None]


def test_a_daisy_is_seen_as_one(judge: Lite0, daisy: Tensor) -> None:
    with torch.inference_mode():
        assert judge(daisy).argmax().item() == DAISY
        assert judge.features(daisy).shape == (1, 1280)
        assert [tuple(each.shape[1:]) for each in judge.early_maps(daisy)] == [
            (16, 112, 112),
            (24, 56, 56),
            (40, 28, 28),
        ]


def test_a_blurred_picture_looks_further_than_a_brighter_one_of_the_same_error(
    judge: Lite0, daisy: Tensor
) -> None:
    blurred = torch.nn.functional.avg_pool2d(daisy, 9, stride=1, padding=4, count_include_pad=False)
    brighter = daisy + (blurred - daisy).square().mean().sqrt()
    with torch.inference_mode():
        assert perceptual_distance(judge, daisy, daisy).item() == 0
        assert perceptual_distance(judge, blurred, daisy) > 2 * perceptual_distance(judge, brighter, daisy)


def test_other_weights_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"conv.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"other\.pth doesn't hold EfficientNet-Lite0's weights"):
        Lite0.load(path)


def test_it_stays_frozen_in_training(judge: Lite0, daisy: Tensor) -> None:
    before = judge.stem[1].running_mean.clone()
    image = daisy.clone().requires_grad_(True)
    perceptual_distance(judge.train(), image, daisy.flip(-1)).mean().backward()
    assert image.grad is not None
    assert image.grad.any()
    assert torch.equal(judge.stem[1].running_mean, before)
