import pytest
import torch

from models.autoencoders.kl import KlAutoencoder, KlConfig
from models.autoencoders.stages import EncodeStage
from models.networks.ldm_autoencoder import LdmConfig
from models.noise import draw_noise
from models.spec import PipelineSpec
from models.stage import Sample, SampleSpec, run_path
from workers.engine.lanes import Lanes
from workers.engine.rows import RowBatches

NETWORK = LdmConfig(latent_channels=4, level_channels=(8, 8), num_blocks=1, num_groups=4, has_moments=True)


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    made = KlAutoencoder(KlConfig(network=NETWORK, image_size_px=16)).eval().requires_grad_(False)
    made.latent_mean.fill_(0.2)
    made.latent_std.fill_(2.0)
    return made


def encoded(autoencoder, *samples):
    run_path([EncodeStage(autoencoder, len(samples))], samples, RowBatches(8, Lanes(1)))
    return [sample.value for sample in samples]


def test_mean_and_drawn_latents_share_a_call_and_each_has_its_own(autoencoder):
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    drawn = SampleSpec(seed=5, samples_posterior=True)
    values = encoded(
        autoencoder,
        Sample(SampleSpec(seed=5), 0, images[0]),
        Sample(drawn, 1, images[1]),
        Sample(drawn, 2, images[2]),
    )
    mean, std = autoencoder.posterior(images)
    torch.testing.assert_close(values[0], mean[0], atol=1e-5, rtol=0)
    for index in (1, 2):
        expected = mean[index] + std[index] * draw_noise((4, 8, 8), 5, index)
        torch.testing.assert_close(values[index], expected, atol=1e-5, rtol=1e-5)


def test_a_seed_draws_the_same_bits_in_any_company(autoencoder):
    image, other = torch.rand(2, 3, 16, 16) * 2 - 1
    drawn = SampleSpec(seed=9, samples_posterior=True)
    (alone,) = encoded(autoencoder, Sample(drawn, 0, image))
    together = encoded(autoencoder, Sample(SampleSpec(), 0, other), Sample(drawn, 0, image))
    assert torch.equal(alone, together[1])
    (again,) = encoded(autoencoder, Sample(SampleSpec(seed=8, samples_posterior=True), 0, image))
    assert not torch.equal(alone, again)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"latent_channels": 3, "projects_latents": False}, "latent_channels must be the network's 4"),
        ({"image_size_px": 15}, "image_size_px must be a multiple of 2"),
        ({"network": LdmConfig(latent_channels=4)}, "network.has_moments must be true"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        KlConfig(**{"network": NETWORK, "image_size_px": 16, **fields})


def test_a_pipeline_without_codes_tells_its_autoencoder_by_a_fingerprint(tmp_path, autoencoder):
    fields = {
        "name": "kl",
        "makes": ({"medium": "image", "width_px": 16, "height_px": 16, "channels": 3},),
        "latents": autoencoder.latent_shape,
        "autoencoders": {"image": "kl"},
    }
    spec = PipelineSpec(**fields, fingerprint=autoencoder.fingerprint(), has_posterior=True)
    spec.save(tmp_path / "pipeline.json")
    assert PipelineSpec.load(tmp_path / "pipeline.json") == spec
    assert spec.tokenizer == autoencoder.fingerprint()
    codes = {"grid": (8, 8), "size": 2, "fingerprint": "0" * 16}
    for field, value in (("has_posterior", True), ("fingerprint", "0" * 16)):
        with pytest.raises(ValueError, match=f"{field}: is for pipelines without codes"):
            PipelineSpec(**fields, codes=codes, **{field: value})
