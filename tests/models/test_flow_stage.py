"""The flow stage's slots: samples of all kinds in one call, each with the bits that it has alone."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.conditioning import Conditions
from models.networks.dit import DiT, DiTConfig
from models.options import FlowOptions
from models.priors.flow import FlowStage
from models.stage import Sample, SampleSpec
from workers.engine.lanes import Lanes
from workers.engine.rows import RowBatches

ROWS = (8,)  # one shape of call, so that nothing is left to the math library


class Network(DiT):
    """A small prior that notes how many rows its calls have, and has memory for so many."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        config = DiTConfig(
            latent_channels=2, grid=(4, 4), hidden_size=32, depth=1, num_heads=2, label_sizes=(3,)
        )
        super().__init__(config)
        torch.nn.init.normal_(self.to_velocity.weight)  # at first it is zero
        torch.nn.init.normal_(self.modulate.weight, std=0.1)
        self.calls: list[int] = []
        self.most_rows = 99

    def forward(self, latents: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        self.calls.append(len(latents))
        if len(latents) > self.most_rows:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(latents, t, conditions)


@pytest.fixture
def network() -> Network:
    return Network().eval()


def make_samples(network: Network) -> list[Sample]:
    """Return guided and unguided samples of every sampler, one of them guided only now and then."""
    options = [
        FlowOptions(sampler=sampler, num_steps=num_steps, guidance_scale=scale)
        for sampler, num_steps, scale in (("euler", 6, 3.0), ("heun", 4, 1.0), ("dpmpp_2m", 7, 2.0))
    ]
    options.append(replace(options[2], guidance_interval=(0.4, 0.6)))
    null = network.null_conditions()
    return [
        Sample(SampleSpec(7, each, Conditions(torch.tensor([[index % 3]])), null), index)
        for index, each in enumerate(options)
    ]


@torch.inference_mode()
def run(stage: FlowStage, samples: list[Sample], *, joins_at: tuple[int, ...] = (0, 0, 0, 0)) -> list[Tensor]:
    """Return what becomes of samples, each of which joins after so many steps of the others."""
    rows = RowBatches(8, Lanes(1))
    running: list[Sample] = []
    for step in range(30):
        for sample, at in zip(samples, joins_at, strict=False):
            if at == step:
                stage.start(sample)
                running.append(sample)
        if running:
            stage.step(running, rows)
        for sample in [each for each in running if each.value is not None or each.error is not None]:
            stage.release(sample)
            running.remove(sample)
    assert not running
    assert [sample.error for sample in samples] == [None] * len(samples)
    return [sample.value for sample in samples]


def alone(network: Network, fixed_rows: tuple[int, ...] = ROWS) -> list[Tensor]:
    """Return what becomes of each sample in a stage of its own."""
    values = []
    for sample in make_samples(network):
        stage = FlowStage(network, 1)
        stage.fixed_rows = fixed_rows
        values += run(stage, [sample])
    return values


@pytest.mark.parametrize("joins_at", [(0, 0, 0, 0), (3, 0, 1, 5), (0, 8, 8, 2)])
def test_all_kinds_of_samples_share_calls_with_the_bits_of_each_alone(network, joins_at) -> None:
    expected = alone(network)
    stage = FlowStage(network, 4)
    stage.fixed_rows = ROWS
    values = run(stage, make_samples(network), joins_at=joins_at)
    assert all(torch.equal(value, wanted) for value, wanted in zip(values, expected, strict=True))
    assert set(network.calls) == {8}


def test_slots_are_used_again_without_a_trace(network) -> None:
    expected = alone(network)
    stage = FlowStage(network, 2)
    stage.fixed_rows = ROWS
    values = []
    for _ in range(2):
        for pair in (slice(0, 2), slice(2, 4)):
            values += run(stage, make_samples(network)[pair])
    assert all(torch.equal(value, wanted) for value, wanted in zip(values, 2 * expected, strict=True))


def test_only_guided_calls_have_an_unconditional_row(network) -> None:
    sample = make_samples(network)[3]
    run(FlowStage(network, 1), [sample])
    assert network.calls == [1, 1, 1, 2, 2, 1, 1]  # at t = 0.43 and 0.57


def test_padding_touches_no_other_slot(network) -> None:
    stage = FlowStage(network, 4)
    stage.fixed_rows = ROWS
    with torch.inference_mode():
        stage._state.fill_(5.0)  # what others might have there
    run(stage, make_samples(network)[:1])
    assert [bool((slot == 5.0).all()) for slot in stage._state] == [False, True, True, True]


def test_a_call_that_memory_is_too_small_for_is_made_in_parts(network) -> None:
    expected = alone(network, (4,))
    network.calls.clear()
    stage = FlowStage(network, 4)
    stage.fixed_rows = (4, 8)
    network.most_rows = 4
    values = run(stage, make_samples(network))
    assert all(torch.equal(value, wanted) for value, wanted in zip(values, expected, strict=True))
    assert network.calls.count(8) == 1  # tried once; from then on there are at most 4
