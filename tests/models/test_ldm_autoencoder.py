import warnings

import pytest
import torch
from pydantic import ValidationError

from models.importers.ldm_names import diffusers_name, expected_tensors
from models.networks.ldm_autoencoder import LdmConfig, LdmDecoder, LdmEncoder

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers.models.autoencoders.vae import Decoder, Encoder

CONFIG = LdmConfig(
    latent_channels=3, level_channels=(8, 16), num_blocks=1, attention_levels=(1,), num_groups=4
)


def references(*, has_moments=False, has_middle_attention=True, attends=True):
    """Return diffusers' encoder and decoder of the shape of ``CONFIG``, with random weights."""
    torch.manual_seed(0)
    encoder = Encoder(
        in_channels=3,
        out_channels=3,
        down_block_types=(
            "DownEncoderBlock2D",
            "AttnDownEncoderBlock2D" if attends else "DownEncoderBlock2D",
        ),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        double_z=has_moments,
        mid_block_add_attention=has_middle_attention,
    )
    decoder = Decoder(
        in_channels=3,
        out_channels=3,
        up_block_types=("AttnUpDecoderBlock2D" if attends else "UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=has_middle_attention,
    )
    return encoder.eval(), decoder.eval()


def loaded(config, encoder, decoder):
    """Return our networks with the weights of diffusers'; every tensor is used."""
    theirs = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    theirs |= {f"decoder.{name}": tensor for name, tensor in decoder.state_dict().items()}
    ours = {name: theirs.pop(diffusers_name(name, config)) for name in expected_tensors(config)}
    assert not theirs
    networks = LdmEncoder(config), LdmDecoder(config)
    for network, part in zip(networks, ("encoder.", "decoder."), strict=True):
        network.load_state_dict({n.removeprefix(part): t for n, t in ours.items() if n.startswith(part)})
    return networks


@pytest.mark.parametrize("has_moments", [False, True])
@pytest.mark.parametrize(("has_middle_attention", "attends"), [(True, True), (False, False), (True, False)])
def test_encoder_and_decoder_compute_what_those_of_diffusers_do(has_moments, has_middle_attention, attends):
    theirs = references(has_moments=has_moments, has_middle_attention=has_middle_attention, attends=attends)
    config = LdmConfig(
        latent_channels=3,
        level_channels=(8, 16),
        num_blocks=1,
        attention_levels=(1,) if attends else (),
        has_middle_attention=has_middle_attention,
        has_moments=has_moments,
        num_groups=4,
    )
    encoder, decoder = loaded(config, *theirs)
    images, latents = torch.rand(2, 3, 16, 16) * 2 - 1, torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        assert torch.allclose(encoder(images), theirs[0](images), atol=1e-5)
        assert torch.allclose(decoder(latents), theirs[1](latents), atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"level_channels": (8, 18)}, "multiples of num_groups 4, got 18"),
        ({"stem_channels": 6}, "multiples of num_groups 4, got 6"),
        ({"attention_levels": (2,)}, "attention_levels must be below 2"),
    ],
)
def test_shape_that_can_not_be_is_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        LdmConfig(**{"level_channels": (8, 16), "num_groups": 4} | fields)
