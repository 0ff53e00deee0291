"""``DiTTransformer2DModel`` of diffusers, imported: the same outputs, and whole runs from the same noise."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from models.conditioning import Conditions
from models.importers import diffusers_dit
from models.importers.base import ImportFailed
from models.importers.formats import read_source
from models.importers.sources import open_source
from models.options import DiffusionOptions
from tests.models.importers.dit_references import (
    NUM_CLASSES,
    load_prior,
    sample_ours,
    sample_theirs,
    save_pipeline,
    transformer,
)

DDIM = {"clip_sample": False}


def imported(folder, scheduler, **config):
    model = transformer(**config)
    read = diffusers_dit.read(open_source(save_pipeline(folder / "theirs", model, scheduler)), {})
    return model, read, load_prior(read, folder)


@pytest.mark.parametrize("out_channels", [4, 8])
def test_the_network_computes_what_diffusers_does(tmp_path: Path, out_channels: int) -> None:
    """Within 1e-5 of outputs of about 1, in float32: only the order of sums differs."""
    model, _, prior = imported(tmp_path, DDIMScheduler(**DDIM), out_channels=out_channels)
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    timesteps, labels = torch.tensor([999, 20, 0]), torch.tensor([3, NUM_CLASSES, 0])
    with torch.inference_mode():
        theirs = model(x, timestep=timesteps, class_labels=labels).sample
        ours = prior.network(x, timesteps.float(), Conditions(labels[:, None]))
    assert theirs.std() > 0.3
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_part_that_was_read_is_not_told_to_be_left_out(tmp_path: Path) -> None:
    """The prior is read off the whole pipeline, for its scheduler, and not again off its own part."""
    source = open_source(save_pipeline(tmp_path / "theirs", transformer(), DDIMScheduler(**DDIM)))
    (prior,), format_name = read_source(source, {})
    assert (prior.role, format_name) == ("prior", "diffusers-dit")
    assert not any("Left out" in note for note in prior.notes)


SCHEDULERS = [
    DDIMScheduler(**DDIM),
    DDIMScheduler(**DDIM, timestep_spacing="linspace", beta_schedule="scaled_linear", beta_end=0.012),
    DDIMScheduler(**DDIM, timestep_spacing="trailing", beta_schedule="squaredcos_cap_v2"),
    DDIMScheduler(**DDIM, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction"),
    DDIMScheduler(**DDIM, prediction_type="sample"),
    DDPMScheduler(**DDIM),
    DDPMScheduler(**DDIM, variance_type="fixed_large", timestep_spacing="trailing", beta_end=0.008),
    DPMSolverMultistepScheduler(),
    DPMSolverMultistepScheduler(timestep_spacing="leading", beta_schedule="scaled_linear"),
    DPMSolverMultistepScheduler(timestep_spacing="trailing", prediction_type="v_prediction"),
]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers' own code
@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda each: f"{type(each).__name__}")
def test_a_run_is_that_of_diffusers_pipeline(tmp_path: Path, scheduler) -> None:
    """Within 1e-4 of the largest latent after 12 guided steps, in float32, from the same noise."""
    model, read, prior = imported(tmp_path, scheduler)
    labels, scale = [1, 7, 4], 3.0
    theirs = sample_theirs(model, scheduler, labels, num_steps=12, guidance_scale=scale, seed=5)
    assert isinstance(read.defaults, DiffusionOptions)
    ours = sample_ours(prior, labels, replace(read.defaults, num_steps=12, guidance_scale=scale), seed=5)
    largest = theirs.abs().max().item()
    assert (ours - theirs).abs().max().item() < 1e-4 * max(1.0, largest)
    assert theirs.std() > 0.1


def test_a_configuration_that_would_sample_otherwise_is_refused(tmp_path: Path) -> None:
    model = transformer()
    for number, (scheduler, message) in enumerate(
        [
            (DDIMScheduler(), "clip_sample must be false"),
            (
                DDIMScheduler(**DDIM, rescale_betas_zero_snr=True),
                "rescale_betas_zero_snr must be False, got 'True'",
            ),
            (DPMSolverMultistepScheduler(solver_order=3), "solver_order must be 2, got '3'"),
            (DDIMScheduler(**DDIM, beta_schedule="linear", beta_end=1.0), "beta_end"),
        ]
    ):
        source = open_source(save_pipeline(tmp_path / str(number), model, scheduler))
        with pytest.raises(ImportFailed, match=message):
            diffusers_dit.read(source, {})


def test_blocks_with_embeddings_of_their_own_are_refused(tmp_path: Path) -> None:
    model = transformer()
    torch.nn.init.ones_(model.transformer_blocks[1].norm1.emb.timestep_embedder.linear_1.bias)
    source = open_source(save_pipeline(tmp_path / "theirs", model, DDIMScheduler(**DDIM)))
    with pytest.raises(ImportFailed, match=r"transformer_blocks\.1\.norm1\.emb.*differs"):
        diffusers_dit.read(source, {})
