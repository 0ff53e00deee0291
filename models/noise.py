"""The noise of a sample: a function of its seed and its number alone."""

import torch
from torch import Tensor


def draw_noise(shape: tuple[int, ...], seed: int, index: int, step: int = 0) -> Tensor:
    """Return the noise (C, *grid) float32 that sample ``index`` of a request with ``seed`` starts from.

    Or that ``step`` adds to it, from 1. Drawn on the CPU from a generator of its own, so that it depends on
    nothing but (seed, index, step).
    """
    mixed = seed * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB
    mixed = (mixed + step * 0xD6E8FEB86659FD93) % 2**63
    return torch.randn(shape, generator=torch.Generator().manual_seed(mixed))
