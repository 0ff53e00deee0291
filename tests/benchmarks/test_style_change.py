"""The comparison of ways to change a style: what each is by its definition."""

from dataclasses import replace

import pytest
import torch

from benchmarks.style_change import Changes, change, flow_edit
from models.pipeline import Pipeline
from tests.tiny import PRIOR, TOKENIZER, save_untrained, tiny_prompt_encoder


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Pipeline:
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    labels = {"style": ("flat", "round", "small"), "group": ("animals", "food")}
    save_untrained(folder, TOKENIZER, PRIOR, labels=labels, prompt_encoder=tiny_prompt_encoder())
    return Pipeline.load(folder)


@pytest.fixture(scope="module")
def changes() -> Changes:
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Changes(pictures, ("1", "2"), torch.tensor([0, 1]), torch.tensor([2, 2]), pictures)


def test_flow_edit_gives_a_picture_back_that_is_asked_for_in_its_own_style(pipeline, changes) -> None:
    same = replace(changes, styles=changes.own_styles)
    unguided = replace(pipeline.spec, defaults=replace(pipeline.spec.defaults, guidance_scale=1.0))
    plain = Pipeline(
        unguided,
        pipeline.autoencoder,
        pipeline.prior,
        pipeline.device,
        pipeline.dtype,
        pipeline.prompt_encoder,
    )
    tokenizer = pipeline.tokenizer
    with torch.inference_mode():
        as_it_is = tokenizer.decode(tokenizer.quantize(tokenizer.encode(changes.sources)).latents).clamp(
            -1, 1
        )
    assert torch.equal(flow_edit(plain, same, 0.9), as_it_is)
    assert not torch.equal(flow_edit(plain, changes, 0.9), as_it_is)


def test_each_picture_is_asked_for_in_the_style_of_its_own(pipeline, changes) -> None:
    others = replace(changes, styles=torch.tensor([2, 0]))
    first, second = change(pipeline, changes, 0.9), change(pipeline, others, 0.9)
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])
