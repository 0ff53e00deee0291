"""The prior and its layers."""

import pytest
import torch
from pydantic import TypeAdapter

from models.autoencoders.vq import TokenizerConfig
from models.conditioning import Conditions, stack_conditions
from models.networks.dit import DiT, DiTConfig
from models.networks.layers import axial_rope, patchify, rotate, unpatchify
from models.options import ConfigError
from models.priors.flow import denoised, draw_noise, interpolate, velocity


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_a_call_that_reuses_its_own_residual_changes_nothing(depth) -> None:
    generator = torch.Generator().manual_seed(0)
    prior = DiT(DiTConfig(grid=(4, 4), hidden_size=16, depth=depth, num_heads=2, label_sizes=(3,)))
    for parameter in prior.parameters():
        parameter.data.normal_(std=0.3, generator=generator)
    x, t, labels = (
        torch.randn(2, 4, 4, 4, generator=generator),
        torch.tensor([0.1, 0.6]),
        Conditions(torch.tensor([[0], [3]])),
    )
    with torch.inference_mode():
        v = prior(x, t, labels)
        fresh, residual = prior.forward_cached(x, t, labels)
        reused, same = prior.forward_cached(x, t, labels, residual)
    assert torch.equal(fresh, v)
    assert same is residual
    # a + (b - a) is b but for rounding in float32
    torch.testing.assert_close(reused, v, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grid", [(8,), (4, 6), (2, 4, 6)])
def test_patches_come_back_as_they_were(grid) -> None:
    latents = torch.randn(3, 5, *grid, generator=torch.Generator().manual_seed(0))
    tokens = patchify(latents, 2)
    assert tokens.shape == (3, latents[0, 0].numel() // 2 ** len(grid), 5 * 2 ** len(grid))
    assert torch.equal(unpatchify(tokens, 2, 5, grid), latents)


def test_a_token_holds_one_square_of_the_grid() -> None:
    latents = torch.arange(16.0).view(1, 1, 4, 4)
    assert patchify(latents, 2)[0, 1].tolist() == [2, 3, 6, 7]


def test_rope_depends_on_the_distance_along_each_axis_alone() -> None:
    cosines, sines = axial_rope((4, 4), 16)
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 16, generator=generator)
    turned_q = rotate(q.expand(1, 1, 16, 16), cosines, sines)[0, 0]
    turned_k = rotate(k.expand(1, 1, 16, 16), cosines, sines)[0, 0]
    scores = (turned_q @ turned_k.T).view(4, 4, 4, 4)
    torch.testing.assert_close(scores[0, 0, 1, 2], scores[2, 1, 3, 3])
    assert not torch.isclose(scores[0, 0, 1, 2], scores[0, 0, 2, 1])


@pytest.mark.parametrize("grid", [(8,), (4, 4), (2, 4, 4)])
def test_prior_keeps_the_shape_over_grids_of_one_two_and_three_axes(grid) -> None:
    config = DiTConfig(latent_channels=3, grid=grid, hidden_size=48, depth=1, num_heads=2, label_sizes=(4,))
    prior = DiT(config)
    x = torch.randn(2, 3, *grid, generator=torch.Generator().manual_seed(0))
    v = prior(
        x,
        torch.tensor([0.0, 0.9]),
        stack_conditions([Conditions(torch.tensor([[1]])), prior.null_conditions()]),
    )
    assert v.shape == x.shape
    assert v.abs().max() == 0, "an untrained prior predicts zero"


def test_path_starts_at_noise_and_ends_at_data_with_a_constant_velocity() -> None:
    generator = torch.Generator().manual_seed(0)
    data, noise = torch.randn(2, 4, 1, 2, 2, generator=generator)
    assert torch.equal(interpolate(data, noise, torch.zeros(4)), noise)
    assert torch.equal(interpolate(data, noise, torch.ones(4)), data)
    t = torch.rand(4, generator=generator)
    x = interpolate(data, noise, t)
    torch.testing.assert_close(denoised(x, velocity(data, noise), t), data)


def test_noise_depends_on_seed_and_index_alone() -> None:
    assert torch.equal(draw_noise((4, 3), 7, 2), draw_noise((4, 3), 7, 2))
    drawn = [draw_noise((4, 3), seed, index) for seed in range(30) for index in range(30)]
    assert len({float(noise[0, 0]) for noise in drawn}) > 890


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DiTConfig(grid=(7, 8), patch_size=2), "multiple of patch_size 2"),
        (lambda: DiTConfig(hidden_size=100, num_heads=3), "num_heads 3"),
        (lambda: TokenizerConfig(image_size_px=30, downsample_factor=4), "multiple of downsample_factor 4"),
        (lambda: TokenizerConfig(quantizer="fsq", fsq_levels=(8, 5)), "fsq_levels must multiply"),
    ],
)
def test_configurations_that_fit_nothing_are_refused(make, said) -> None:
    with pytest.raises((ConfigError, ValueError), match=said):
        make()


def test_labels_of_older_weights_are_read() -> None:
    """Before labels could be any sets, a prior's file told of classes, styles and groups."""
    older = TypeAdapter(DiTConfig).validate_python({"num_classes": 0, "num_styles": 7, "num_groups": 9})
    assert older == DiTConfig(label_sizes=(7, 9))
    assert DiTConfig(num_classes=3) == DiTConfig(label_sizes=(3,))
