from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from models.autoencoders import lookups
from models.autoencoders.base import Quantizing
from models.autoencoders.lookups import make_lookup
from models.autoencoders.vqgan import Vqgan, VqganConfig
from models.checkpoint import save_checkpoint
from models.networks.ldm_autoencoder import LdmConfig
from models.networks.magvit_autoencoder import MagvitConfig

NETWORK = LdmConfig(latent_channels=4, level_channels=(8, 8), num_blocks=1, num_groups=4)
CONFIG = VqganConfig(network=NETWORK, image_size_px=16, codebook_size=32, code_channels=4)


def randomized(vqgan):
    """Fill a codebook, which starts as zeros."""
    torch.manual_seed(1)
    for buffer in vqgan.quantizer.buffers():
        buffer.normal_()
    return vqgan.eval().requires_grad_(False)


@pytest.fixture
def vqgan():
    torch.manual_seed(0)
    return randomized(Vqgan(CONFIG))


def vectors_and_codebook(num_codes=50):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(40, 6, generator=generator), torch.randn(num_codes, 6, generator=generator)


def test_euclidean_lookup_finds_the_nearest_entry():
    vectors, codebook = vectors_and_codebook()
    lookup = make_lookup("euclidean", 50, 6)
    lookup.codebook.copy_(codebook)
    assert torch.equal(lookup.nearest(vectors), torch.cdist(vectors, codebook).argmin(1))


def test_cosine_lookup_finds_the_entry_at_the_smallest_angle():
    vectors, codebook = vectors_and_codebook()
    lookup = make_lookup("cosine", 50, 6)
    lookup.codebook.copy_(F.normalize(codebook, dim=-1))
    assert torch.equal(lookup.nearest(vectors), F.cosine_similarity(vectors[:, None], codebook, -1).argmax(1))


def test_dot_product_lookup_finds_the_entry_with_the_largest_product():
    vectors, codebook = vectors_and_codebook()
    lookup = make_lookup("dot_product", 50, 6)
    lookup.codebook.copy_(codebook)
    assert torch.equal(lookup.nearest(vectors), (vectors @ codebook.T).argmax(1))


def test_score_lookup_takes_the_highest_score_and_returns_the_entry_of_another_table():
    vectors, codebook = vectors_and_codebook()
    lookup = make_lookup("scores", 50, 6)
    lookup.codebook.copy_(codebook)
    codes = lookup.nearest(vectors)
    assert torch.equal(codes, lookup.scores(vectors).argmax(1))
    assert torch.equal(lookup.entries(codes), codebook[codes])


def test_sign_lookup_reads_channel_i_as_bit_i():
    lookup = make_lookup("signs", 8, 3)
    vectors = torch.tensor([[-1.0, -1, -1], [0.5, -1, 0], [-1, 2, -0.1], [1, 1, 1]])
    assert lookup.nearest(vectors).tolist() == [0, 1, 2, 7]
    assert lookup.entries(torch.tensor([[5]])).tolist() == [[[1, -1, 1]]]
    assert torch.equal(lookup.nearest(lookup.entries(torch.arange(8))), torch.arange(8))


def test_large_codebook_is_searched_in_blocks(monkeypatch):
    vectors, codebook = vectors_and_codebook()
    monkeypatch.setattr(lookups, "_BLOCK", 150)
    lookup = make_lookup("euclidean", 50, 6)
    lookup.codebook.copy_(codebook)
    assert torch.equal(lookup.nearest(vectors), torch.cdist(vectors, codebook).argmin(1))


def test_images_become_codes_and_images_again(vqgan):
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    latents = vqgan.encode(images)
    quantized = vqgan.quantize(latents)
    assert isinstance(vqgan, Quantizing)
    assert latents.shape[1:] == vqgan.latent_shape == (4, 8, 8)
    assert quantized.codes.shape == (2, 8, 8)
    assert torch.equal(vqgan.lookup(quantized.codes), quantized.latents)
    decoded = vqgan.decode(quantized.latents)
    assert decoded.shape == images.shape
    assert decoded.abs().max() <= 1


def test_latents_scaled_for_a_prior_have_the_same_codes_and_images(vqgan):
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    codes = vqgan.quantize(vqgan.encode(images)).codes
    decoded = vqgan.decode(vqgan.lookup(codes))
    vqgan.latent_mean.fill_(0.5)
    vqgan.latent_std.fill_(3.0)
    assert torch.equal(vqgan.quantize(vqgan.encode(images)).codes, codes)
    assert torch.allclose(vqgan.decode(vqgan.lookup(codes)), decoded, atol=1e-5)


def test_networks_that_know_images_from_zero_get_and_give_them_so(vqgan):
    from_zero = Vqgan(replace(CONFIG, is_from_zero=True))
    from_zero.load_state_dict(vqgan.state_dict())
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.allclose(from_zero.encode(images), vqgan.encode((images + 1) / 2), atol=1e-5)
    latents = torch.randn(1, 4, 8, 8)
    raw = vqgan.decoder(vqgan.from_codes(latents))
    assert torch.allclose(from_zero.decode(latents), (2 * raw - 1).clamp(-1, 1), atol=1e-5)


def test_infinite_pixels_are_not_hidden(vqgan):
    vqgan.decoder.to_pixels.bias.fill_(torch.inf)
    assert vqgan.decode(torch.zeros(1, 4, 8, 8)).isnan().all()


@pytest.mark.parametrize(
    "config",
    [CONFIG, replace(CONFIG, network=MagvitConfig("simvq", latent_channels=4, level_channels=(32, 32)))],
)
def test_saved_vqgan_is_loaded_with_the_same_fingerprint(tmp_path, config):
    vqgan = randomized(Vqgan(config))
    save_checkpoint(tmp_path / "tokenizer.safetensors", vqgan.state_dict(), config)
    loaded = Vqgan.load(tmp_path / "tokenizer.safetensors")
    assert loaded.config == config
    assert loaded.fingerprint() == vqgan.fingerprint()


def test_fingerprint_tells_lookups_apart(vqgan):
    other = Vqgan(replace(CONFIG, lookup="dot_product"))
    other.load_state_dict(vqgan.state_dict())
    assert other.fingerprint() != vqgan.fingerprint()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size_px": 17}, "multiple of 2, the pixels behind a code, got 17"),
        ({"has_projections": False, "code_channels": 8}, "latent_channels 4 without projections, got 8"),
        ({"lookup": "signs"}, "2 to the power of code_channels 4 .* got 32"),
        ({"network": replace(NETWORK, image_channels=4)}, "image_channels must be 1 or 3, got 4"),
        ({"network": replace(NETWORK, has_moments=True)}, "has_moments is for autoencoders without"),
    ],
)
def test_configuration_that_contradicts_itself_is_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        replace(CONFIG, **fields)
