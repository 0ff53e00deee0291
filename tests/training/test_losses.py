"""The tokenizer's losses, term by term."""

import pytest
import torch

from training.losses import reconstruction_loss

NONE = {"l1_weight": 0.0, "l2_weight": 0.0, "edge_weight": 0.0, "ssim_weight": 0.0}


def test_a_constant_error_has_no_edges() -> None:
    images = torch.zeros(1, 3, 16, 16)
    made = images + 0.5
    terms = {
        name: float(reconstruction_loss(made, images, **{**NONE, name: 1.0}))
        for name in NONE
        if name != "ssim_weight"
    }
    assert terms == pytest.approx({"l1_weight": 0.5, "l2_weight": 0.25, "edge_weight": 0.0})


def test_the_structural_term_pulls_towards_the_image() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1
    weights = {**NONE, "ssim_weight": 2.0}
    assert float(reconstruction_loss(images, images, **weights)) == pytest.approx(0.0, abs=1e-5)
    made = (images + 0.3 * torch.randn(images.shape, generator=generator)).bfloat16().requires_grad_(True)
    loss = reconstruction_loss(made, images, **weights)
    (gradient,) = torch.autograd.grad(loss, made)
    assert 0.0 < loss.item() < 4.0
    nearer = made.detach().float() - 2.0 * gradient.float()
    assert float(reconstruction_loss(nearer, images, **weights)) < loss.item()
