"""Normal distributions of latents, as encoders give them."""

from torch import Tensor

_LOG_VARIANCE_RANGE = (-30.0, 20.0)


def split_moments(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and bounded log-variance (B, d, *grid) float32 of ``moments`` (B, 2·d, *grid)."""
    mean, log_variance = moments.float().chunk(2, 1)
    return mean, log_variance.clamp(*_LOG_VARIANCE_RANGE)
