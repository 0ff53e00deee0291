import warnings
from dataclasses import replace

import pytest
import torch

from models.autoencoders.kl import KlAutoencoder, KlConfig
from models.exporters.base import ExportFailed
from models.networks.ldm_autoencoder import LdmConfig
from models.pipeline import Pipeline
from models.registry import EXPORTERS, load_kind
from models.spec import PipelineSpec
from tests.models.importers.published import weights

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import AutoencoderKL

NETWORK = LdmConfig(
    latent_channels=3,
    level_channels=(8, 16),
    num_blocks=1,
    attention_levels=(1,),
    num_groups=4,
    has_moments=True,
)
CONFIG = KlConfig(network=NETWORK, image_size_px=16, latent_channels=3)


def pipeline_of(config, mean=0.0, std=1.0):
    """Return a pipeline that encodes and decodes, with random weights."""
    autoencoder = KlAutoencoder(config)
    autoencoder.load_state_dict(weights({name: t.shape for name, t in autoencoder.state_dict().items()}))
    autoencoder.latent_mean.fill_(mean)
    autoencoder.latent_std.fill_(std)
    channels, height, width = autoencoder.signal_shape
    spec = PipelineSpec(
        name="own",
        makes=({"medium": "image", "width_px": width, "height_px": height, "channels": channels},),
        latents=autoencoder.latent_shape,
        autoencoders={"image": "kl"},
    )
    return Pipeline(spec, autoencoder, None, torch.device("cpu"), torch.float32)


def export(pipeline, folder):
    load_kind(EXPORTERS["diffusers"], "kl")(pipeline, folder)


@pytest.mark.parametrize(
    ("config", "mean", "std"),
    [
        (CONFIG, 0.0, 1 / 0.18215),
        (replace(CONFIG, projects_moments=False, projects_latents=False), 0.1159, 1 / 0.3611),
    ],
)
def test_diffusers_has_the_same_latents_and_the_same_images_of_them(tmp_path, config, mean, std):
    pipeline = pipeline_of(config, mean, std)
    export(pipeline, tmp_path)
    theirs = AutoencoderKL.from_pretrained(tmp_path / "vae").eval()
    assert theirs.config.scaling_factor == pytest.approx(1 / std)
    assert (theirs.config.shift_factor or 0) == pytest.approx(mean)
    ours = pipeline.autoencoder
    images = torch.rand((2, 3, 16, 16), generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        posterior = theirs.encode(images).latent_dist
        torch.testing.assert_close(ours.encode(images), (posterior.mean - mean) / std, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.posterior(images)[1], posterior.std / std, rtol=0, atol=1e-5)
        decoded = theirs.decode(posterior.mean).sample.clamp(-1, 1)
        torch.testing.assert_close(ours.decode(ours.encode(images)), decoded, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (replace(CONFIG, latent_channels=4), "have the channels of its networks, 3; here they have 4"),
        (replace(CONFIG, network=replace(NETWORK, has_tanh=True)), "can't end with a tanh"),
    ],
)
def test_what_an_autoencoder_kl_can_not_be_is_refused_with_nothing_written(tmp_path, config, said):
    with pytest.raises(ExportFailed, match=said):
        export(pipeline_of(config), tmp_path)
    assert not list(tmp_path.iterdir())


def test_figures_of_each_channel_are_refused(tmp_path):
    pipeline = pipeline_of(CONFIG)
    pipeline.autoencoder.latent_std[1] = 2.0
    with pytest.raises(ExportFailed, match="not those of channels"):
        export(pipeline, tmp_path)
