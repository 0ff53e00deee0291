"""Drawing a source's codes anew, in whole or in parts: which are kept, and that no neighbour changes them."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.options import MaskedOptions
from models.pipeline import Pipeline
from models.priors.known_codes import num_edit_steps
from models.priors.masked import MaskedStage
from models.stage import Sample, SampleSpec, run_path
from tests.tiny import save_families

NUM_CODES = 36
OPTIONS = MaskedOptions(num_steps=8, guidance_scale=2.0)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Pipeline:
    """Of 12×12 pixels, and 6×6 codes that a token has four of."""
    folder = tmp_path_factory.mktemp("weights")
    save_families(folder)
    return Pipeline.load(folder / "masked", dtype=torch.float32)


@pytest.fixture
def source() -> Tensor:
    return torch.rand(1, 12, 12, generator=torch.Generator().manual_seed(4)) * 2 - 1


@pytest.fixture
def codes() -> Tensor:
    return torch.randint(32, (6, 6), generator=torch.Generator().manual_seed(5))


def hole() -> Tensor:
    """Return a mask in which 3×2 places of the grid have pixels that are drawn anew."""
    mask = torch.zeros(1, 12, 12, dtype=torch.bool)
    mask[:, 3:7, 4:7] = True  # rows 1 to 3, columns 2 and 3
    return mask


def in_hole() -> Tensor:
    is_new = torch.zeros(6, 6, dtype=torch.bool)
    is_new[1:4, 2:4] = True
    return is_new


def edit(
    pipeline: Pipeline, value: Tensor, options: MaskedOptions, mask: Tensor | None = None, index: int = 0
) -> Sample:
    spec = SampleSpec(7, options, pipeline.conditions({"class": 1}), pipeline.conditions(), mask=mask)
    return Sample(spec, index, value, source=torch.zeros(1, 12, 12))


def started(pipeline: Pipeline, sample: Sample) -> tuple[Tensor, int]:
    """Return which codes a sample has at its start, and how many calls it will take."""
    stage = MaskedStage(pipeline.prior.network, 1)
    stage.start(sample)
    return stage._codes[0].view(6, 6) != 32, stage.num_calls(sample)


def run(pipeline: Pipeline, *samples: Sample) -> list[Tensor]:
    stage = MaskedStage(pipeline.prior.network, len(samples))
    stage.fixed_rows = (8,)
    run_path([stage], list(samples))
    return [sample.value for sample in samples]


@pytest.mark.parametrize("sampler", ["confidence", "ancestral"])
def test_known_pixels_and_known_codes_come_back_exactly(pipeline, source, sampler) -> None:
    spec = edit(pipeline, source, replace(OPTIONS, sampler=sampler, strength=1.0), hole()).spec
    sample = Sample(spec, 0, source, source=source)
    encoded = pipeline.tokenizer.quantize(pipeline.tokenizer.encode(source[None])).codes[0]
    run_path(pipeline.make_stages(1).path("generate", is_edit=True), [sample])
    is_same = sample.value == source
    assert is_same[~hole()].all()
    assert not is_same[hole()].any()
    assert torch.equal(sample.codes[~in_hole()], encoded[~in_hole()])
    assert (sample.codes[in_hole()] != encoded[in_hole()]).any()


@pytest.mark.parametrize("num_steps", [3, 50])
def test_a_full_strength_without_a_mask_gives_what_no_source_gives(pipeline, codes, num_steps) -> None:
    options = replace(OPTIONS, num_steps=num_steps, strength=1.0)
    plain = Sample(edit(pipeline, codes, options).spec, 0)
    first, second = run(pipeline, plain, edit(pipeline, codes, options))
    assert torch.equal(first, second)


@pytest.mark.parametrize(("strength", "num_new", "num_calls"), [(0.25, 9, 2), (0.001, 1, 1), (0.99, 36, 8)])
def test_a_strength_masks_its_share_of_codes_and_takes_its_share_of_steps(
    pipeline, codes, strength, num_new, num_calls
) -> None:
    options = replace(OPTIONS, strength=strength)
    is_kept, found = started(pipeline, edit(pipeline, codes, options))
    assert ((~is_kept).sum(), found) == (num_new, num_calls)
    (made,) = run(pipeline, edit(pipeline, codes, options))
    assert torch.equal(made[is_kept], codes[is_kept])


def test_which_codes_are_masked_again_is_the_seeds(pipeline, codes) -> None:
    options = replace(OPTIONS, strength=0.5)
    masked = [started(pipeline, edit(pipeline, codes, options, index=index))[0] for index in (0, 1, 0)]
    assert torch.equal(masked[0], masked[2])
    assert not torch.equal(masked[0], masked[1])


def test_with_a_mask_a_strength_is_of_what_it_leaves_to_be_drawn(pipeline, codes) -> None:
    is_kept, _ = started(pipeline, edit(pipeline, codes, replace(OPTIONS, strength=0.5), hole()))
    assert is_kept[~in_hole()].all()
    assert (~is_kept).sum() == 3


@pytest.mark.parametrize(
    ("num_steps", "num_new", "expected"), [(12, 6, 6), (4, 6, 4), (12, 0, 1), (50, NUM_CODES, 50)]
)
def test_no_step_has_less_than_a_code_to_fill_in(num_steps, num_new, expected) -> None:
    options = MaskedOptions(num_steps=num_steps, strength=1.0)
    assert num_edit_steps(options, num_new, NUM_CODES) == expected


def test_edits_share_calls_with_plain_samples_with_the_codes_of_each_alone(pipeline, codes) -> None:
    def make() -> list[Sample]:
        kinds = (
            (replace(OPTIONS, strength=0.6), None),
            (replace(OPTIONS, strength=1.0), hole()),
            (MaskedOptions(num_steps=5, sampler="ancestral", strength=0.7), hole()),
            (OPTIONS, None),
        )
        samples = [
            edit(pipeline, codes, options, mask, number) for number, (options, mask) in enumerate(kinds)
        ]
        samples[-1].value = samples[-1].source = None
        return samples

    together = run(pipeline, *make())
    alone = [run(pipeline, sample)[0] for sample in make()]
    assert all(torch.equal(ours, wanted) for ours, wanted in zip(together, alone, strict=True))


def test_a_slot_that_held_known_codes_is_used_again_without_a_trace(pipeline, codes) -> None:
    stage, values = MaskedStage(pipeline.prior.network, 1), []
    nothing = torch.zeros(1, 12, 12, dtype=torch.bool)
    for mask in (None, nothing, None):
        sample = edit(pipeline, codes, replace(OPTIONS, strength=1.0), mask)
        run_path([stage], [sample])
        values.append(sample.value)
    assert torch.equal(values[0], values[2])
    assert torch.equal(values[1], codes)  # nothing was drawn anew
