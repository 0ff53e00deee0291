"""What the KL term asks of latents, against closed forms."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from training.bottlenecks import NormalLatents

IMAGES = torch.zeros(8, 1, 12, 12)
PLACES_PER_VALUE = 36 / 144  # of a 6×6 grid, to pixel values


def moments(scale: float = 1.0) -> Tensor:
    """Mean and log-variance of four channels, (8, 8, 6, 6); the first channel tells next to nothing."""
    drawn = scale * torch.randn(8, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    drawn[:, [0, 4]] *= 1e-3
    return drawn.requires_grad_()


def nats_of(encoded: Tensor) -> Tensor:
    """Return each channel's mean divergence from the standard normal distribution, (4,)."""
    mean, log_variance = encoded.chunk(2, 1)
    distribution = Normal(mean, (log_variance / 2).exp())
    return kl_divergence(distribution, Normal(0.0, 1.0)).mean((0, 2, 3))


def test_the_term_is_the_divergence_in_nats_a_pixel_value() -> None:
    encoded = moments()
    squeezed = NormalLatents(0.5, 0.0, seed=0).squeeze(lambda _: encoded, IMAGES, None, 0)
    torch.testing.assert_close(squeezed.loss, 0.5 * nats_of(encoded).sum() * PLACES_PER_VALUE)
    torch.testing.assert_close(squeezed.logged["kl_nats"], nats_of(encoded).mean().detach())


def test_gradients_of_what_is_decoded_reach_mean_and_deviation() -> None:
    encoded = moments()
    squeezed = NormalLatents(0.0, 0.0, seed=0).squeeze(lambda _: encoded, IMAGES, None, 0)
    mean, log_variance = encoded.detach().chunk(2, 1)
    noise = (squeezed.latents.detach() - mean) / (log_variance / 2).exp()
    assert noise.mean().abs() < 0.1  # of 1,152 draws, with a deviation of 0.03
    assert noise.std() == pytest.approx(1, abs=0.1)
    squeezed.latents.sum().backward()
    of_mean, of_log_variance = encoded.grad.chunk(2, 1)
    torch.testing.assert_close(of_mean, torch.ones_like(mean))
    torch.testing.assert_close(of_log_variance, noise * (log_variance / 2).exp() / 2)


def test_a_step_draws_the_same_noise_again_and_others_draw_another() -> None:
    encoded = moments().detach()
    drawn = [
        NormalLatents(1.0, 0.0, seed, rank).squeeze(lambda _: encoded, IMAGES, None, step).latents
        for seed, rank, step in ((0, 0, 3), (0, 0, 3), (0, 0, 4), (1, 0, 3), (0, 1, 3))
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not any(torch.equal(drawn[0], other) for other in drawn[2:])


def test_channels_below_the_free_nats_pay_these_and_are_not_pulled() -> None:
    encoded = moments()
    nats = nats_of(encoded).detach()
    free = nats[1:].min().item() / 2
    assert nats[0] < free
    squeezed = NormalLatents(1.0, free, seed=0).squeeze(lambda _: encoded, IMAGES, None, 0)
    torch.testing.assert_close(squeezed.loss, (free + nats[1:].sum()) * PLACES_PER_VALUE)
    squeezed.loss.backward()
    pulls = encoded.grad.abs().amax((0, 2, 3))  # (8,)
    assert (pulls > 0).tolist() == [False, True, True, True] * 2


def test_latents_that_are_far_off_give_a_finite_term() -> None:
    encoded = moments(scale=1e3)
    squeezed = NormalLatents(1.0, 0.0, seed=0).squeeze(lambda _: encoded, IMAGES, None, 0)
    squeezed.loss.backward()
    assert squeezed.loss.isfinite()
    assert encoded.grad.isfinite().all()
