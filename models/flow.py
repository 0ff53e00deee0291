"""The path from noise to data, and what a prior learns along it. Time t: 0 is noise, 1 is data."""

import torch
from torch import Tensor


def interpolate(latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return x_t = t·latents + (1 − t)·noise for latents, noise (B, …) and t (B,) in [0, 1].

    Lipman et al. 2023 (arXiv:2210.02747), with the straight path of Liu et al. 2023 (arXiv:2209.03003).
    """
    t = t.view(-1, *[1] * (latents.ndim - 1))
    return t * latents + (1 - t) * noise


def velocity(latents: Tensor, noise: Tensor) -> Tensor:
    """Return dx_t/dt = latents − noise: what the prior is trained to predict, the same at every t."""
    return latents - noise


def denoised(x: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """Return the data that ``velocity`` at ``x`` (B, …) and time t (B,) points to."""
    return x + (1 - t).view(-1, *[1] * (x.ndim - 1)) * velocity


def draw_times(num_samples: int, generator: torch.Generator, *, mean: float, std: float) -> Tensor:
    """Return logit-normal times (B,) for training (Esser et al. 2024, arXiv:2403.03206).

    A ``mean`` below 0 spends more of the training near the noise.
    """
    return torch.sigmoid(mean + std * torch.randn(num_samples, generator=generator))


def draw_noise(shape: tuple[int, ...], seed: int, index: int) -> Tensor:
    """Return the noise (C, *grid) float32 that image ``index`` of a request with ``seed`` starts from.

    Drawn on the CPU from a generator of its own, so that it depends on nothing but (seed, index).
    """
    mixed = (seed * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**63
    return torch.randn(shape, generator=torch.Generator().manual_seed(mixed))
