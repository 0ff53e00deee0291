"""A prior exported: diffusers loads it, and samples the same latents from the same noise."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.exporters.base import ExportFailed
from models.importers import diffusers_dit
from models.importers.sources import open_source
from models.options import DiffusionOptions
from models.pipeline import Pipeline
from models.priors.class_prior import ClassPrior
from models.priors.schedules import FlowSchedule
from models.registry import EXPORTERS, load_kind
from models.spec import PipelineSpec
from tests.models.importers.dit_references import (
    NUM_CLASSES,
    load_prior,
    sample_ours,
    sample_theirs,
    save_pipeline,
    transformer,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import DDIMScheduler, DDPMScheduler, DiTTransformer2DModel, DPMSolverMultistepScheduler

SCHEDULERS = [
    DDIMScheduler(clip_sample=False, beta_end=0.015, set_alpha_to_one=False, steps_offset=1),
    DDPMScheduler(clip_sample=False, variance_type="fixed_large", timestep_spacing="linspace"),
    DPMSolverMultistepScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction"),
]


def exported(folder: Path, prior: ClassPrior, defaults: DiffusionOptions) -> Path:
    """Export a prior; the autoencoder beside it is none of this exporter's."""
    spec = PipelineSpec(
        name="own",
        makes=({"medium": "image", "width_px": 8, "height_px": 8, "channels": 3},),
        latents=prior.latent_shape,
        autoencoders={"image": "kl"},
        labels={"class": tuple(map(str, range(NUM_CLASSES)))},
        prior="dit",
        defaults=defaults,
    )
    pipeline = Pipeline(spec, object(), prior, torch.device("cpu"), torch.float32)
    folder.mkdir()
    load_kind(EXPORTERS["diffusers"], "dit")(pipeline, folder)
    return folder


def prior_of(folder: Path, scheduler) -> tuple[ClassPrior, DiffusionOptions]:
    read = diffusers_dit.read(open_source(save_pipeline(folder / "theirs", transformer(), scheduler)), {})
    return load_prior(read, folder), read.defaults


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers' own code
@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda each: f"{type(each).__name__}")
def test_diffusers_samples_the_same_with_what_was_exported(tmp_path: Path, scheduler) -> None:
    """Within 1e-4 of the largest latent after eight guided steps, in float32, from the same noise."""
    prior, defaults = prior_of(tmp_path, scheduler)
    folder = exported(tmp_path / "out", prior, defaults)
    model = DiTTransformer2DModel.from_pretrained(folder / "transformer").eval()
    theirs_again = type(scheduler).from_pretrained(folder / "scheduler")
    theirs = sample_theirs(model, theirs_again, [2, 9], num_steps=8, guidance_scale=2.0, seed=3)
    ours = sample_ours(prior, [2, 9], replace(defaults, num_steps=8, guidance_scale=2.0), seed=3)
    largest = theirs.abs().max().item()
    assert (ours - theirs).abs().max().item() < 1e-4 * max(1.0, largest)


@pytest.mark.parametrize(
    ("network", "config", "message"),
    [
        ({"frequency_shift": 0}, {}, "divides the exponents of its time embedding by 127"),
        ({"has_rope": True}, {}, "no layers of LightningDiT"),
        ({}, {"guided_channels": 3}, "guides all 4 channels, this pipeline 3"),
        ({}, {"schedule": FlowSchedule()}, "samples diffusions; this prior is a flow"),
    ],
)
def test_what_diffusers_would_compute_otherwise_is_refused(tmp_path: Path, network, config, message) -> None:
    prior, defaults = prior_of(tmp_path, DDIMScheduler(clip_sample=False))
    prior.config = replace(prior.config, network=replace(prior.config.network, **network), **config)
    with pytest.raises(ExportFailed, match=message):
        exported(tmp_path / "out", prior, defaults)
    assert not list((tmp_path / "out").iterdir())
