"""Losses of the tokenizer."""

import torch.nn.functional as F
from torch import Tensor


def reconstruction_loss(
    reconstructed: Tensor, images: Tensor, *, l1_weight: float, l2_weight: float, edge_weight: float
) -> Tensor:
    """Return the weighted sum of absolute, squared and edge errors over (B, C, H, W) in [-1, 1].

    The edge term is the absolute error of the differences between neighbouring pixels: it asks for
    crispness without a network that would have to be downloaded.
    """
    error = reconstructed.float() - images
    loss = l1_weight * error.abs().mean() + l2_weight * error.square().mean()
    if edge_weight:
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        loss = loss + edge_weight * edges
    return loss


def equivariance_views(latents: Tensor, images: Tensor, quarter_turns: int) -> tuple[Tensor, Tensor]:
    """Return latents and images at half their size, turned by 90° ``quarter_turns`` times.

    A decoder that must make the one from the other keeps latents smooth, which a prior learns more
    easily (EQ-VAE, Kouzelis et al. 2025, arXiv:2502.09509; here with scale 1/2 only).
    """
    half = tuple(side // 2 for side in latents.shape[-2:])
    half_images = tuple(side // 2 for side in images.shape[-2:])
    small = F.interpolate(latents, size=half, mode="area")
    small_images = F.interpolate(images, size=half_images, mode="area")
    return small.rot90(quarter_turns, (-2, -1)), small_images.rot90(quarter_turns, (-2, -1))
