"""Autoencoders without a codebook compute what their authors' code does."""

import warnings
from importlib import import_module
from pathlib import Path

import pytest
import torch

from models.autoencoders.continuous import Continuous
from models.importers.base import ImportFailed, Source
from models.importers.ldm_names import compvis_name
from models.registry import IMPORTERS
from tests.models.importers.published import weights

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import AutoencoderKL, AutoencoderTiny

SIZE = {"image_size_px": "32"}
KL = {
    "block_out_channels": [32, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "latent_channels": 4,
    "scaling_factor": 0.5,
    "sample_size": 64,
}
TINY = {
    "encoder_block_out_channels": (16, 16, 16),
    "decoder_block_out_channels": (16, 16, 16),
    "num_encoder_blocks": (1, 2, 1),
    "num_decoder_blocks": (2, 1, 1),
    "latent_channels": 4,
}


def imported(source, settings=()):
    """Return what the importer makes of a source that recognises it; exactly one does."""
    found = [module for module in map(import_module, IMPORTERS.values()) if module.recognises(source)]
    assert len(found) == 1
    return found[0].read(source, dict(settings))


def loaded(made):
    autoencoder = Continuous(made.config)
    autoencoder.load_state_dict(made.tensors)
    return autoencoder.eval().requires_grad_(False)


def randomised(model):
    """Return a model of diffusers with weights that leave no layer without an effect."""
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict(weights(shapes))
    return model.eval().requires_grad_(False)


def source_of(model, **config):
    return Source(
        Path("vae"), model.state_dict(), {**dict(model.config), "_class_name": type(model).__name__, **config}
    )


def images(size_px):
    return torch.rand((2, 3, size_px, size_px), generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shift_factor": 0.1, "use_quant_conv": False, "use_post_quant_conv": False},
        {"mid_block_add_attention": False},
    ],
)
def test_kl_of_diffusers_has_the_same_posterior_and_pictures(changes):
    model = randomised(AutoencoderKL(**{**KL, **changes}))
    made = imported(source_of(model))
    ours = loaded(made)
    assert ours.signal_shape == (3, 64, 64)
    theirs = model.encode(images(64)).latent_dist
    shift = changes.get("shift_factor", 0.0)
    mean, std = ours.posterior(images(64))
    torch.testing.assert_close(mean, (theirs.mean - shift) * 0.5, rtol=0, atol=1e-5)
    torch.testing.assert_close(std, theirs.std * 0.5, rtol=0, atol=1e-5)
    noise = torch.randn(theirs.mean.shape, generator=torch.Generator().manual_seed(2))
    drawn = theirs.sample(torch.Generator().manual_seed(2))
    torch.testing.assert_close(mean + std * noise, (drawn - shift) * 0.5, rtol=0, atol=1e-5)
    decoded = model.decode(theirs.mean).sample.clamp(-1, 1)
    torch.testing.assert_close(ours.decode(mean), decoded, rtol=0, atol=1e-5)


def test_kl_of_latent_diffusion_is_the_same_as_that_of_diffusers_with_its_weights():
    """Both projects' names of one model: the published conversion is a renaming."""
    model = randomised(AutoencoderKL(**{**KL, "scaling_factor": 0.18215}))
    made = imported(source_of(model))
    theirs = {}
    for name, tensor in made.tensors.items():
        part, _, rest = name.partition(".")
        if part in ("encoder", "decoder"):
            is_matrix = ".middle.1." in name and tensor.ndim == 2
            theirs[compvis_name(name, made.config.network)] = (
                tensor[:, :, None, None] if is_matrix else tensor
            )
        elif part in ("to_latents", "from_latents"):
            theirs[f"{'quant_conv' if part == 'to_latents' else 'post_quant_conv'}.{rest}"] = tensor
    assert "decoder.up.0.block.0.conv1.weight" in theirs
    ddconfig = {"double_z": True, "z_channels": 4, "resolution": 64, "ch": 32, "ch_mult": [1, 2]}
    stage = {
        "target": "ldm.models.autoencoder.AutoencoderKL",
        "params": {"embed_dim": 4, "ddconfig": ddconfig},
    }
    alone = imported(Source(Path("kl.ckpt"), theirs, {"model": stage}), {"scaling_factor": "0.18215"})
    whole = imported(
        Source(
            Path("model.ckpt"),
            {f"first_stage_model.{name}": tensor for name, tensor in theirs.items()},
            {"model": {"params": {"scale_factor": 0.18215, "first_stage_config": stage}}},
        )
    )
    for each in (alone, whole):
        assert each.config.network.level_channels == made.config.network.level_channels
        assert all(torch.equal(each.tensors[name], tensor) for name, tensor in made.tensors.items())
    assert any("whole diffusion model" in note for note in whole.notes)
    unscaled = imported(Source(Path("kl.ckpt"), theirs, {"model": stage}))
    assert any("not scaled" in note for note in unscaled.notes)


def test_tiny_autoencoder_of_diffusers_is_the_same():
    model = randomised(AutoencoderTiny(**TINY))
    made = imported(source_of(model), SIZE)
    ours = loaded(made)
    assert (ours.latent_shape, ours.signal_shape) == ((4, 8, 8), (3, 32, 32))
    latents = model.encode(images(32)).latents
    torch.testing.assert_close(ours.encode(images(32)), latents, rtol=0, atol=1e-5)
    decoded = model.decode(latents).sample.clamp(-1, 1)
    torch.testing.assert_close(ours.decode(latents), decoded, rtol=0, atol=1e-5)
    assert not ours.posterior(images(32))[1].any()


def test_tiny_autoencoder_as_published_in_two_files_is_the_same():
    model = randomised(AutoencoderTiny(**TINY))
    files = {
        name: {
            key.removeprefix(f"{name}.layers."): t
            for key, t in model.state_dict().items()
            if key.startswith(name)
        }
        for name in ("encoder", "decoder")
    }
    files["decoder"] = {
        f"{int(key.split('.')[0]) + 1}.{key.partition('.')[2]}": t for key, t in files["decoder"].items()
    }
    parts = {name: Source(Path(f"{name}.pth"), tensors) for name, tensors in files.items()}
    made = imported(Source(Path("taesd"), {}, parts=parts), SIZE)
    expected = imported(source_of(model), SIZE)
    assert made.config == expected.config
    assert all(torch.equal(made.tensors[name], tensor) for name, tensor in expected.tensors.items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"act_fn": "gelu"}, "act_fn must be 'relu', got 'gelu'"),
        ({"scaling_factor": 0}, "scaling_factor must be above 0"),
        ({"scaling_factor": "high"}, "scaling_factor must be a number, got 'high'"),
    ],
)
def test_what_is_not_known_is_refused(change, said):
    with pytest.raises(ImportFailed, match=said):
        imported(source_of(randomised(AutoencoderTiny(**TINY)), **change), SIZE)


@pytest.mark.parametrize(
    ("config", "num_tensors"),
    [
        # Stable Diffusion 1 and XL; FLUX.1 has 16 channels and no projections.
        ({"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}, 248),
        (
            {
                "block_out_channels": [128, 256, 512, 512],
                "layers_per_block": 2,
                "latent_channels": 16,
                "use_quant_conv": False,
                "use_post_quant_conv": False,
                "scaling_factor": 0.3611,
                "shift_factor": 0.1159,
            },
            244,
        ),
    ],
)
def test_every_tensor_of_the_full_sizes_has_its_place(config, num_tensors):
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    with torch.device("meta"):
        model = AutoencoderKL(**{"latent_channels": 4, **kinds, **config})
    assert len(model.state_dict()) == num_tensors
    made = imported(source_of(model))
    assert len(made.tensors) == num_tensors + 2  # with mean and deviation of the latents
