"""The prior and its layers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter

from models.autoencoders.vq import TokenizerConfig
from models.conditioning import Conditions, stack_conditions
from models.networks.dit import DiT, DiTConfig
from models.networks.layers import Linear, axial_rope, patchify, rotate, turns, unit, unpatchify
from models.options import ConfigError
from models.priors.flow import denoised, draw_noise, interpolate, velocity


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
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 16, generator=generator)
    plain = turns(*axial_rope((4, 4), 16), torch.ones(16))
    turned_q, turned_k = (rotate(each.expand(1, 16, 16), *plain)[0] for each in (q, k))
    scores = (turned_q @ turned_k.T).view(4, 4, 4, 4)
    torch.testing.assert_close(scores[0, 0, 1, 2], scores[2, 1, 3, 3])
    assert not torch.isclose(scores[0, 0, 1, 2], scores[0, 0, 2, 1])


def test_queries_are_normed_weighted_and_turned_as_by_one_after_the_other() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(3, 6, 2, 16, generator=generator)  # (B, N, heads, d)
    weight = torch.rand(16, generator=generator)
    cosines, sines = axial_rope((2, 3), 16)
    first, second = F.rms_norm(q, (16,), weight).chunk(2, dim=-1)
    c, s = cosines[:, None], sines[:, None]
    wanted = torch.cat([first * c - second * s, second * c + first * s], dim=-1)
    made = rotate(unit(q), *turns(cosines, sines, (weight * 4).expand(2, 16)))
    torch.testing.assert_close(made, wanted)


def test_a_vector_of_zeros_has_no_direction_and_stays() -> None:
    assert unit(torch.zeros(2, 8, dtype=torch.bfloat16)).abs().max() == 0


@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(256, 768), (704, 256), (16, 256)])
def test_weights_laid_out_for_the_processor_give_the_bits_of_a_linear_layer(num_inputs, num_outputs) -> None:
    layer = Linear(num_inputs, num_outputs).to(torch.bfloat16)
    x = torch.randn(3, 49, num_inputs, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    with torch.inference_mode():
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    with torch.inference_mode():
        assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    with torch.no_grad():
        layer.weight.mul_(2)  # as when a training's average is copied into a network
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_a_network_made_for_inference_alone_can_be_used_and_copied() -> None:
    with torch.inference_mode():
        prior = DiT(DiTConfig(grid=(4, 4), hidden_size=16, depth=1, num_heads=2)).to(torch.bfloat16)
        inputs = torch.ones(1, 4, 4, 4), torch.tensor([0.5]), prior.null_conditions()
        assert torch.equal(copy.deepcopy(prior)(*inputs), prior(*inputs))


def test_what_is_kept_between_calls_follows_the_weights() -> None:
    prior = DiT(DiTConfig(grid=(4, 4), hidden_size=16, depth=1, num_heads=2, label_sizes=(3,)))
    for parameter in prior.parameters():
        parameter.data.normal_(std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    inputs = torch.ones(1, 4, 4, 4), torch.tensor([0.5]), prior.null_conditions()
    with torch.no_grad():
        before = prior(*inputs)
        prior.get_parameter("blocks.0.attention.query_norm.weight").mul_(3)
        after = prior(*inputs)
    assert not torch.equal(after, before)
    torch.testing.assert_close(prior(*inputs).detach(), after)  # made anew where there are gradients


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
