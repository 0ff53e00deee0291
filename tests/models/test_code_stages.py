"""The stages of priors over codes: samples of all kinds in one call, each with the codes that it has alone."""

import pytest
import torch
from torch import Tensor

from models.conditioning import Conditions
from models.networks.code_transformer import CodeTransformer, CodeTransformerConfig
from models.options import AutoregressiveOptions, MaskedOptions, Options
from models.priors.autoregressive import AutoregressiveStage
from models.priors.code_draws import DrawSettings, draw_next, generator_of
from models.priors.masked import MaskedStage
from models.stage import NotFinite, Sample, SampleSpec, Stage
from workers.engine.lanes import Lanes
from workers.engine.rows import RowBatches

ROWS = (8,)  # one shape of call, so that nothing is left to the math library
IN_TURN: list[Options] = [
    AutoregressiveOptions(),
    AutoregressiveOptions(guidance_scale=2.0, temperature=0.8, top_k=9),
    AutoregressiveOptions(guidance_scale=3.0, top_p=0.7, repetition_window=8),
    AutoregressiveOptions(temperature=0),
]
MASKED: list[Options] = [
    MaskedOptions(num_steps=4),
    MaskedOptions(num_steps=7, guidance_scale=2.0, sampler="ancestral"),
    MaskedOptions(num_steps=5, guidance_scale=3.0, temperature=0.8, choice_temperature=1.0),
    MaskedOptions(num_steps=20, temperature=0),
]


class Network(CodeTransformer):
    """A small network that notes how many rows its calls have, has memory for so many, and may break."""

    def __init__(self, *, is_causal: bool) -> None:
        torch.manual_seed(0)
        config = CodeTransformerConfig(
            is_causal=is_causal, grid=(4, 4), codebook_size=32, hidden_size=32, depth=1, num_heads=2,
            label_sizes=(3,), common_code=7,
        )  # fmt: skip
        super().__init__(config)
        for parameter in self.parameters():
            parameter.data.normal_(std=0.3)
        self.calls: list[int] = []
        self.most_rows = 99

    def _note(self, num_rows: int) -> None:
        self.calls.append(num_rows)
        if num_rows > self.most_rows:
            raise torch.OutOfMemoryError("out of memory")

    def forward(self, codes: Tensor, conditions: Conditions) -> Tensor:
        self._note(len(codes))
        return super().forward(codes, conditions)

    def decode(self, codes, positions, rows, cache) -> Tensor:
        self._note(len(codes))
        return super().decode(codes, positions, rows, cache)


@pytest.fixture(params=["in_turn", "masked"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make_stage(family: str, network: Network, num_slots: int, rows: tuple[int, ...] = ROWS) -> Stage:
    kind = AutoregressiveStage if family == "in_turn" else MaskedStage
    stage = kind(network, num_slots)
    stage.fixed_rows = rows
    return stage


def make_network(family: str) -> Network:
    return Network(is_causal=family == "in_turn").eval().requires_grad_(False)


def make_samples(family: str, network: Network) -> list[Sample]:
    null = network.null_conditions()
    return [
        Sample(SampleSpec(7, each, Conditions(torch.tensor([[index % 3]])), null), index)
        for index, each in enumerate(IN_TURN if family == "in_turn" else MASKED)
    ]


@torch.inference_mode()
def run(stage: Stage, samples: list[Sample], *, joins_at: tuple[int, ...] = (0, 0, 0, 0)) -> list[Tensor]:
    """Return what becomes of samples, each of which joins after so many steps of the others."""
    rows = RowBatches(8, Lanes(1))
    running: list[Sample] = []
    for step in range(60):
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
    return [sample.value for sample in samples if sample.value is not None]


def alone(family: str, network: Network, rows: tuple[int, ...] = ROWS) -> list[Tensor]:
    """Return what becomes of each sample in a stage of its own."""
    return [
        value
        for sample in make_samples(family, network)
        for value in run(make_stage(family, network, 1, rows), [sample])
    ]


@pytest.mark.parametrize("joins_at", [(0, 0, 0, 0), (3, 0, 1, 5), (0, 18, 8, 2)])
def test_all_kinds_of_samples_share_calls_with_the_codes_of_each_alone(family, joins_at) -> None:
    network = make_network(family)
    expected = alone(family, network)
    values = run(make_stage(family, network, 4), make_samples(family, network), joins_at=joins_at)
    assert all(torch.equal(value, wanted) for value, wanted in zip(values, expected, strict=True))
    assert set(network.calls) == {8}
    assert all(int(value.min()) >= 0 and int(value.max()) < 32 for value in values)


def test_slots_are_used_again_without_a_trace(family) -> None:
    network = make_network(family)
    expected = alone(family, network)
    stage = make_stage(family, network, 2)
    values = []
    for _ in range(2):
        for pair in (slice(0, 2), slice(2, 4)):
            values += run(stage, make_samples(family, network)[pair])
    assert all(torch.equal(value, wanted) for value, wanted in zip(values, 2 * expected, strict=True))


def test_a_call_that_memory_is_too_small_for_is_made_in_parts(family) -> None:
    """So rows are computed twice: the first attempt may have written keys and values already."""
    network = make_network(family)
    expected = alone(family, network, (4,))
    network.calls.clear()
    stage = make_stage(family, network, 4, (4, 8))
    network.most_rows = 4
    values = run(stage, make_samples(family, network))
    assert all(torch.equal(value, wanted) for value, wanted in zip(values, expected, strict=True))
    assert network.calls.count(8) == 1  # tried once; from then on there are at most 4


@torch.inference_mode()
def test_a_sample_that_is_dropped_half_way_harms_no_other(family) -> None:
    network = make_network(family)
    expected = alone(family, network)
    stage, samples = make_stage(family, network, 4), make_samples(family, network)
    for sample in samples:
        stage.start(sample)
    for _ in range(3):
        stage.step(samples, RowBatches(8, Lanes(1)))
    stage.release(samples[1])
    late = make_samples(family, network)[1]
    stage.start(late)
    samples[1] = late
    while running := [each for each in samples if each.calls_done < stage.num_calls(each)]:
        stage.step(running, RowBatches(8, Lanes(1)))
    assert all(torch.equal(s.value, wanted) for s, wanted in zip(samples, expected, strict=True))


@torch.inference_mode()
def test_a_network_that_gives_no_numbers_fails_its_samples(family) -> None:
    network = make_network(family)
    network.to_logits.bias.fill_(torch.nan)
    stage, sample = make_stage(family, network, 1), make_samples(family, network)[0]
    stage.start(sample)
    while sample.calls_done < stage.num_calls(sample) and sample.error is None:
        stage.step([sample], RowBatches(8, Lanes(1)))
    assert isinstance(sample.error, NotFinite)


@torch.inference_mode()
def test_a_preview_has_the_codes_so_far_and_something_for_the_rest(family) -> None:
    network = make_network(family)
    stage, samples = make_stage(family, network, 4), make_samples(family, network)
    for sample in samples:
        stage.start(sample)
    for _ in range(3):
        stage.step(samples, RowBatches(8, Lanes(1)))
    shown = stage.preview(samples)
    assert shown.shape == (4, 4, 4)
    assert int(shown.min()) >= 0
    assert int(shown.max()) < 32
    if family == "in_turn":
        assert set(shown.flatten(1)[:, 3:].flatten().tolist()) == {7}
    while running := [each for each in samples if each.calls_done < stage.num_calls(each)]:
        stage.step(running, RowBatches(8, Lanes(1)))
    assert torch.equal(stage.preview(samples), torch.stack([sample.value for sample in samples]))


@torch.inference_mode()
def test_an_image_in_turn_is_what_the_whole_network_says_code_by_code() -> None:
    """The draws of the stage, against those from a forward pass over all codes so far."""
    network = make_network("in_turn")
    samples = make_samples("in_turn", network)
    values = run(make_stage("in_turn", network, 4), samples)
    for sample, value in zip(make_samples("in_turn", network), values, strict=True):
        options = sample.spec.options
        codes = torch.full((1, 4, 4), network.no_code)
        uniforms = torch.rand(16, 2, generator=generator_of(7, sample.index), dtype=torch.float64)
        settings = DrawSettings.of([options], torch.device("cpu"))
        for position in range(16):
            both = [network(codes, each) for each in (sample.spec.conditions, sample.spec.null)]
            cond, null = (logits.flatten(2)[:, :, position] for logits in both)
            logits = null + options.guidance_scale * (cond - null)
            at = torch.tensor([position])
            drawn = draw_next(logits, settings, uniforms[at], codes.flatten(1), at)
            codes.view(1, -1)[0, position] = drawn[0]
        assert torch.equal(codes[0], value)
