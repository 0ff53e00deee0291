"""Losses of the tokenizer."""

from torch import Tensor

from training.evaluation.metrics import measure_ssim


def reconstruction_loss(
    reconstructed: Tensor,
    images: Tensor,
    *,
    l1_weight: float,
    l2_weight: float,
    edge_weight: float,
    ssim_weight: float,
) -> Tensor:
    """Return the weighted sum of absolute, squared, edge and structural errors over (B, C, H, W) in [-1, 1].

    The edge term is the absolute error of the differences between neighbouring pixels, and the structural
    one 1 − SSIM: they ask for crispness without a network that would have to be downloaded.
    """
    error = reconstructed.float() - images
    loss = l1_weight * error.abs().mean() + l2_weight * error.square().mean()
    if edge_weight:
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        loss = loss + edge_weight * edges
    if ssim_weight:
        loss = loss + ssim_weight * (1 - measure_ssim(reconstructed.float(), images).mean())
    return loss
