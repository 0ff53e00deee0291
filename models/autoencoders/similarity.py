"""Structural similarity of images."""

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW_PX = 11
_SIGMA_PX = 1.5
_DATA_RANGE = 2.0  # of values in [-1, 1]


def measure_similarity(images: Tensor, targets: Tensor) -> Tensor:
    """Return the structural similarity around each position, (…, C, H − 10, W − 10), at most 1.

    images: (…, C, H, W) float in [-1, 1], at least 11 pixels a side; targets: as they, or to be broadcast.
    Wang et al. 2004 (doi:10.1109/TIP.2003.819861): Gaussian window of 11 pixels and sigma 1.5,
    K = (0.01, 0.03), windows inside the image only. Unlike theirs, images aren't scaled down first.
    """
    offsets = torch.arange(WINDOW_PX, dtype=torch.float64) - WINDOW_PX // 2
    weights = torch.exp(-offsets.square() / (2 * _SIGMA_PX**2))
    weights = (weights / weights.sum()).to(images).expand(images.shape[-3], 1, 1, WINDOW_PX)

    def blur(x: Tensor) -> Tensor:
        leading = x.shape[:-3]
        x = F.conv2d(x.flatten(0, -4), weights, groups=len(weights))
        return F.conv2d(x, weights.transpose(2, 3), groups=len(weights)).unflatten(0, leading)

    c1, c2 = (0.01 * _DATA_RANGE) ** 2, (0.03 * _DATA_RANGE) ** 2
    mean_x, mean_y = blur(images), blur(targets)
    variance_x = blur(images * images) - mean_x * mean_x
    variance_y = blur(targets * targets) - mean_y * mean_y
    covariance = blur(images * targets) - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return similarity / ((mean_x.square() + mean_y.square() + c1) * (variance_x + variance_y + c2))
