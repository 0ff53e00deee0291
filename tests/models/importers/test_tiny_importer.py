import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from models.autoencoders.tiny import TinyAutoencoder, TinyConfig
from models.importers.base import ImportFailed
from models.importers.sources import open_source
from models.importers.tiny import read
from tests.models.importers.published import full_size, weights
from tests.models.importers.test_vq_importers import imported, source_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import AutoencoderTiny

SIZE = {"image_size_px": "32"}


def tiny(**more):
    """Return diffusers' class, small, with random weights."""
    given = {
        "encoder_block_out_channels": (8, 8, 8),
        "decoder_block_out_channels": (8, 8, 8),
        "num_encoder_blocks": (1, 2, 2),
        "num_decoder_blocks": (2, 2, 1),
        "latent_channels": 5,
    }
    model = AutoencoderTiny(**{**given, **more}).eval()
    model.load_state_dict(weights({name: t.shape for name, t in model.state_dict().items()}))
    return model


def loaded(made):
    autoencoder = TinyAutoencoder(made.config)
    autoencoder.load_state_dict(made.tensors)
    return autoencoder.eval()


def as_published(model):
    """Return the tensors of the author's two files, whose decoder counts one layer more than diffusers'."""
    encoder = {name.removeprefix("layers."): t for name, t in model.encoder.state_dict().items()}
    decoder = {}
    for name, tensor in model.decoder.state_dict().items():
        number, _, rest = name.removeprefix("layers.").partition(".")
        decoder[f"{int(number) + 1}.{rest}"] = tensor
    return encoder, decoder


def saved(folder, encoder, decoder):
    torch.save(encoder, folder / "taesd_encoder.pth")
    torch.save(decoder, folder / "taesd_decoder.pth")


def assert_same(ours, theirs):
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.inference_mode():
        latents = theirs.encode(images).latents
        config = theirs.config
        scaled = (latents - config.shift_factor) * config.scaling_factor
        torch.testing.assert_close(ours.encode(images), scaled, atol=1e-5, rtol=0)
        decoded = theirs.decode(latents).sample.clamp(-1, 1)
        torch.testing.assert_close(ours.decode(scaled), decoded, atol=1e-5, rtol=0)


@pytest.mark.parametrize("more", [{}, {"scaling_factor": 0.4, "shift_factor": 0.1}])
def test_a_folder_of_diffusers_encodes_and_decodes_as_there(tmp_path, more):
    theirs = tiny(**more)
    theirs.save_pretrained(tmp_path)
    made = imported(open_source(tmp_path), SIZE)
    assert (made.role, made.kind, made.config.image_size_px) == ("autoencoder", "tiny", 32)
    assert_same(loaded(made), theirs)


def test_the_authors_two_files_encode_and_decode_as_there(tmp_path):
    theirs = tiny()
    saved(tmp_path, *as_published(theirs))
    for name in ("taesd_encoder.pth", "taesd_decoder.pth"):
        assert_same(loaded(imported(open_source(tmp_path / name), SIZE)), theirs)


def test_a_half_without_the_other_is_refused(tmp_path):
    encoder, _ = as_published(tiny())
    torch.save(encoder, tmp_path / "taesd_encoder.pth")
    with pytest.raises(ImportFailed, match="the other must lie beside it"):
        read(open_source(tmp_path / "taesd_encoder.pth"), SIZE)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda encoder, decoder: encoder.pop("3.conv.2.bias"), "1 missing"),
        (lambda encoder, decoder: decoder.update({"1.weight": torch.ones(9, 5, 3, 3)}), "of another shape"),
        (lambda encoder, decoder: decoder.update({"3.pool.0.weight": torch.ones(32, 8, 1, 1)}), "missing"),
        (lambda encoder, decoder: decoder.pop("1.weight"), "decoder.1.weight is missing"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, spoil, said):
    encoder, decoder = as_published(tiny())
    spoil(encoder, decoder)
    save_file(encoder, tmp_path / "taesd_encoder.safetensors")  # no process of its own reads it
    save_file(decoder, tmp_path / "taesd_decoder.safetensors")
    with pytest.raises(ImportFailed, match=said):
        imported(open_source(tmp_path / "taesd_encoder.safetensors"), SIZE)


def test_another_activation_than_the_published_is_refused(tmp_path):
    theirs = tiny(act_fn="silu")
    theirs.save_pretrained(tmp_path)
    with pytest.raises(ImportFailed, match="act_fn must be 'relu', got 'silu'"):
        imported(open_source(tmp_path), SIZE)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("taesd", TinyConfig()),
        ("taef1", TinyConfig(latent_channels=16)),
        ("taef2", TinyConfig(latent_channels=32, has_pool=True)),
    ],
)
def test_every_tensor_of_the_full_sizes_has_its_place(name, expected):
    diffusers = {}
    for key, tensor in full_size(name).items():
        network, number, rest = key.split(".", 2)
        diffusers[f"{network}.layers.{int(number) - (network == 'decoder')}.{rest}"] = tensor
    made = imported(source_of(diffusers), {"image_size_px": "512"})
    assert made.config == expected
    with torch.device("meta"):
        shapes = {key: t.shape for key, t in TinyAutoencoder(expected).state_dict().items()}
    assert {key: t.shape for key, t in made.tensors.items()} == shapes


def test_statistics_of_the_whole_picture_are_added_before_the_convolutions():
    config = TinyConfig(
        image_size_px=8, latent_channels=2, hidden_channels=4, encoder_blocks=(0, 1), decoder_blocks=(1, 0)
    )
    with_pool = TinyAutoencoder(replace(config, has_pool=True)).eval()
    block = with_pool.encoder[2]
    x = torch.rand(1, 4, 4, 4)
    y = x + block.pool[3](torch.relu(torch.nn.functional.group_norm(block.pool[0](x), 4)))
    torch.testing.assert_close(block(x), torch.relu(block.conv(y) + y))
