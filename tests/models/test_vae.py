"""The continuous autoencoder of our own: the tokenizer's networks, with a distribution of latents."""

from pathlib import Path

import pytest
import torch

from models.autoencoders.base import Probabilistic, Quantizing
from models.autoencoders.stages import DecodeStage, EncodeStage, LatentsStage
from models.autoencoders.vae import VariationalAutoencoder
from models.autoencoders.vq import Tokenizer, TokenizerConfig
from models.checkpoint import CheckpointError, save_checkpoint
from models.networks.dit import DiTConfig
from models.networks.shuffle_autoencoder import ShuffleConfig
from models.noise import draw_noise
from models.pipeline import Pipeline
from models.stage import Sample, SampleSpec, run_path
from tests.tiny import save_untrained
from training.config_file import TrainingError
from training.latents import load_autoencoder

SHAPE = ShuffleConfig(
    image_channels=3, image_size_px=16, downsample_factor=4, hidden_channels=8, num_blocks=1
)


@pytest.fixture(scope="module")
def autoencoder() -> VariationalAutoencoder:
    torch.manual_seed(0)
    made = VariationalAutoencoder(SHAPE).eval().requires_grad_(False)
    made.latent_mean.fill_(0.2)
    made.latent_std.fill_(2.0)
    return made


def test_it_has_the_tokenizers_networks_but_for_the_second_half_of_the_moments() -> None:
    names = ("image_channels", "image_size_px", "downsample_factor", "hidden_channels", "num_blocks")
    tokenizer = Tokenizer(TokenizerConfig(**{name: getattr(SHAPE, name) for name in names}))
    shapes = {
        type(each): {name: tuple(parameter.shape) for name, parameter in each.named_parameters()}
        for each in (tokenizer, VariationalAutoencoder(SHAPE))
    }
    ours, theirs = shapes[VariationalAutoencoder], shapes[Tokenizer]
    assert {name for name in ours if ours[name] != theirs.get(name)} == {
        "encoder.to_latents.weight",
        "encoder.to_latents.bias",
    }
    assert ours["encoder.to_latents.bias"] == (2 * SHAPE.latent_channels,)


def test_it_has_a_distribution_of_scaled_latents_and_no_codes(autoencoder: VariationalAutoencoder) -> None:
    assert isinstance(autoencoder, Probabilistic)
    assert not isinstance(autoencoder, Quantizing)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, log_variance = autoencoder.encoder(images).chunk(2, 1)
    drawn = SampleSpec(seed=5, samples_posterior=True)
    samples = [Sample(SampleSpec(), 0, images[0]), Sample(drawn, 1, images[1])]
    run_path([EncodeStage(autoencoder, 2)], samples)
    torch.testing.assert_close(samples[0].value, (mean[0] - 0.2) / 2)
    z = mean[1] + (log_variance[1] / 2).exp() * draw_noise((4, 4, 4), 5, 1)
    torch.testing.assert_close(samples[1].value, (z - 0.2) / 2)
    source = [Sample(SampleSpec(), 0, images[0])]
    run_path([LatentsStage(autoencoder, 1)], source)
    torch.testing.assert_close(source[0].value, samples[0].value)
    run_path([DecodeStage(autoencoder, 1)], source)
    torch.testing.assert_close(source[0].value, autoencoder.decoder(mean[:1])[0].clamp(-1, 1))


def test_its_file_and_its_fingerprint_are_its_own(
    tmp_path: Path, autoencoder: VariationalAutoencoder
) -> None:
    path = tmp_path / "tokenizer.safetensors"
    save_checkpoint(path, autoencoder.exported(), autoencoder.config)
    again = VariationalAutoencoder.load(path)
    assert again.fingerprint() == autoencoder.fingerprint()
    again.latent_std.mul_(2)
    assert again.fingerprint() != autoencoder.fingerprint()
    with pytest.raises(CheckpointError, match="does not fit its configuration"):
        Tokenizer.load(path)


def test_a_pipeline_of_it_generates_encodes_and_tells_a_prior_its_kind(tmp_path: Path) -> None:
    prior = DiTConfig(grid=(4, 4), hidden_size=32, depth=1, num_heads=2, label_sizes=(2,))
    save_untrained(tmp_path / "own", SHAPE, prior, labels={"class": ("left", "right")})
    pipeline = Pipeline.load(tmp_path / "own")
    spec = pipeline.spec
    assert (spec.codes, spec.codebook_size, spec.has_posterior, spec.edits) == (None, None, True, True)
    assert spec.fingerprint == pipeline.autoencoder.fingerprint()
    assert pipeline.generate(pipeline.conditions({"class": 1}), seed=0).shape == (1, 3, 16, 16)
    file = tmp_path / "own" / "tokenizer.safetensors"
    assert isinstance(load_autoencoder(file), VariationalAutoencoder)
    (tmp_path / "own" / "pipeline.json").write_text(
        (tmp_path / "own" / "pipeline.json").read_text().replace('"vae"', '"tiny"')
    )
    with pytest.raises(TrainingError, match="of the kind tiny, which was imported"):
        load_autoencoder(file)
