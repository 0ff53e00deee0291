"""Drawing a source anew, in whole or in parts: what comes back, and that no neighbour changes it."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.autoencoders.vq import Tokenizer
from models.conditioning import Conditions
from models.networks.dit import DiT, DiTConfig
from models.options import FlowOptions
from models.pipeline import Pipeline
from models.priors.flow import FlowStage, draw_noise
from models.priors.known import After, interpolate, resampled_calls
from models.priors.samplers import SAMPLERS, make_calls, time_grid, times_after
from models.stage import Sample, SampleSpec, run_directly, run_path
from tests.tiny import PRIOR, TOKENIZER, save_untrained

SHAPE = (2, 4, 4)


@pytest.fixture(scope="module")
def network() -> DiT:
    torch.manual_seed(0)
    config = DiTConfig(latent_channels=2, grid=(4, 4), hidden_size=32, depth=1, num_heads=2, label_sizes=(3,))
    network = DiT(config)
    torch.nn.init.normal_(network.to_velocity.weight)  # at first it is zero
    return network.eval()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Pipeline:
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    prior = DiTConfig(grid=PRIOR.grid, hidden_size=32, depth=2, num_heads=2)
    save_untrained(folder, TOKENIZER, prior)
    return Pipeline.load(folder)


def edit(
    network: DiT, latents: Tensor, options: FlowOptions, mask: Tensor | None = None, index: int = 0
) -> Sample:
    conditions = Conditions(torch.tensor([[1]]))
    spec = SampleSpec(7, options, conditions, network.null_conditions(), mask=mask)
    return Sample(spec, index, latents, source=torch.zeros(1, 8, 8))


# --- times -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("easing", [0.0, 1.0])
@pytest.mark.parametrize(("num_steps", "strength"), [(10, 0.6), (16, 0.3), (4, 0.01), (7, 0.99), (1, 0.5)])
def test_a_strength_leaves_the_end_of_the_time_grid(num_steps, strength, easing) -> None:
    times = time_grid(num_steps, easing, strength)
    assert times[0] == pytest.approx(1 - strength, abs=1e-12)
    assert times[-1] == 1
    assert len(times) - 1 == max(1, round(num_steps * strength))
    assert all(first < second for first, second in itertools.pairwise(times))


def test_full_strength_has_the_times_of_no_source_bit_for_bit() -> None:
    assert time_grid(14, 0.3, 1.0) == time_grid(14, 0.3)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_step_ends_where_the_next_begins(sampler) -> None:
    options = FlowOptions(num_steps=5, sampler=sampler, time_easing=0.5)
    times = times_after([call.t for call in make_calls(options, 0.7)])
    assert times[-1] == 1
    assert list(dict.fromkeys(times)) == time_grid(5, 0.5, 0.7)[1:]


# --- sampling --------------------------------------------------------------------------------------------


def test_sampling_starts_between_the_samples_own_noise_and_its_source(network) -> None:
    latents = torch.ones(SHAPE)
    stage = FlowStage(network, 1)
    sample = edit(network, latents, FlowOptions(strength=0.25), index=3)
    stage.start(sample)
    noise = draw_noise(SHAPE, 7, 3)
    assert torch.allclose(stage.latents([sample])[0], 0.75 * latents + 0.25 * noise, atol=1e-6)


@torch.inference_mode()
def test_a_full_strength_without_a_mask_gives_what_no_source_gives(network) -> None:
    options = FlowOptions(num_steps=3, strength=1.0)
    plain = Sample(edit(network, torch.ones(SHAPE), options).spec, 0)
    edited = edit(network, torch.ones(SHAPE), options)
    run_path([FlowStage(network, 2)], [plain, edited])
    assert torch.equal(plain.value, edited.value)


@pytest.mark.parametrize("sampler", SAMPLERS)
@torch.inference_mode()
def test_known_latents_come_back_exactly_and_stay_on_their_path(network, sampler) -> None:
    latents = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, 1, 1] = True  # of the grid's first place one pixel in four
    options = FlowOptions(num_steps=4, sampler=sampler, strength=0.8)
    sample, stage = edit(network, latents, options, mask), FlowStage(network, 1)
    stage.start(sample)
    noise = draw_noise(SHAPE, 7, 0)
    for time in times_after(
        [call.t for call in make_calls(options, 0.8)]
    ):  # of so few steps each is taken once
        stage.step([sample], run_directly)
        expected = interpolate(latents[None], noise[None], torch.tensor([time]))[0]
        now = stage.latents([sample])[0]
        assert torch.equal(now[:, 1:], expected[:, 1:])
        assert torch.equal(now[:, 0, 1:], expected[:, 0, 1:])
        assert not torch.equal(now[:, 0, 0], expected[:, 0, 0])
        assert torch.equal(stage.preview([sample])[0][:, 1:], latents[:, 1:])
    assert torch.equal(sample.value, now)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_steps_are_taken_again_in_no_more_calls_where_there_are_enough(sampler) -> None:
    options = FlowOptions(num_steps=15, sampler=sampler, time_easing=0.3)
    calls = resampled_calls(options, 1.0)
    assert calls[-1][1] == After(1)
    assert len(calls) <= len(make_calls(options))
    assert {after.back_to for _, after in calls} == {None, *time_grid(5, 0.3)[1:-1]}
    assert len([after for _, after in calls if after.back_to is not None]) == 4 * 2
    few = replace(options, num_steps=9)
    assert [call for call, _ in resampled_calls(few, 1.0)] == make_calls(few)


@pytest.mark.parametrize("back_to", [0.1, 0.5, 0.8])
def test_going_back_gives_the_noise_of_that_time(back_to) -> None:
    generator = torch.Generator().manual_seed(6)
    latents, noise, fresh = (torch.randn(100_000, generator=generator) for _ in range(3))
    of_x, of_noise = After(0.9, back_to).shares
    x = of_x * interpolate(latents[None], noise[None], torch.tensor([0.9]))[0] + of_noise * fresh
    assert (x - back_to * latents).std() == pytest.approx(1 - back_to, rel=0.02)  # 100,000 draws
    assert (x * latents).mean() == pytest.approx(back_to, rel=0.05)


@torch.inference_mode()
def test_edits_share_calls_with_plain_samples_with_the_bits_of_each_alone(network) -> None:
    generator = torch.Generator().manual_seed(2)
    masks = [None, None, torch.rand(1, 8, 8, generator=generator) > 0.7]

    def make() -> list[Sample]:
        latents = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
        samples = [
            edit(network, latents, FlowOptions(num_steps=12, strength=0.6, guidance_scale=2.0), mask, number)
            for number, mask in enumerate(masks)
        ]
        samples[0].value = samples[0].source = None
        return samples

    def stage_of(num_slots: int) -> FlowStage:
        stage = FlowStage(network, num_slots)
        stage.fixed_rows = (8,)
        return stage

    together = make()
    run_path([stage_of(3)], together)
    for alone, other in zip(make(), together, strict=True):
        run_path([stage_of(1)], [alone])
        assert torch.equal(alone.value, other.value)


def test_a_slot_that_held_a_mask_is_used_again_without_a_trace(network) -> None:
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    stage, values = FlowStage(network, 1), []
    for is_masked in (False, True, False):
        sample = edit(network, torch.ones(SHAPE), FlowOptions(num_steps=2), mask if is_masked else None)
        run_path([stage], [sample])
        values.append(sample.value)
    assert torch.equal(values[0], values[2])
    assert torch.equal(values[1], torch.ones(SHAPE))  # nothing was drawn anew


# --- whole paths -----------------------------------------------------------------------------------------


def test_known_pixels_are_those_of_the_source(pipeline) -> None:
    assert isinstance(pipeline.autoencoder, Tokenizer)
    source = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(4)) * 2 - 1
    mask = torch.zeros(1, 16, 16, dtype=torch.bool)
    mask[:, 4:9, 3:8] = True
    null = pipeline.conditions()
    spec = SampleSpec(1, FlowOptions(num_steps=2, strength=1.0), null, null, mask=mask)
    sample = Sample(spec, 0, source, source=source)
    run_path(pipeline.make_stages(1).path("generate", is_edit=True), [sample])
    same = (sample.value == source).all(0)
    assert same[~mask[0]].all()
    assert not same[mask[0]].any()


def test_a_source_is_encoded_to_latents_that_are_not_snapped(pipeline) -> None:
    source = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(5)) * 2 - 1
    sample = Sample(SampleSpec(), 0, source)
    run_path([pipeline.make_stages(1).source], [sample])
    expected = pipeline.autoencoder.encode(source[None])[0]  # as the call of a lone sample
    assert torch.equal(sample.value, expected)
