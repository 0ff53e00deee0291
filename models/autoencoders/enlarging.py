"""Small pictures made as large as an autoencoder takes them: how a prior that draws them larger sees them."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def enlarge(signals: Tensor, size: Sequence[int]) -> Tensor:
    """Return signals (B, C, *size) in [-1, 1]: pictures (B, C, h, w) by bicubic interpolation.

    What has the size already stays as it is.
    """
    if signals.shape[2:] == tuple(size):
        return signals
    return F.interpolate(signals, tuple(size), mode="bicubic").clamp(-1, 1)
