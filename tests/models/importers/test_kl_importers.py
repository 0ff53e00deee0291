import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.autoencoders.kl import KlAutoencoder
from models.importers.base import ImportFailed, Source
from models.importers.formats import read_source
from models.importers.sources import open_source
from tests.models.importers.published import full_size, small, weights
from tests.models.importers.test_vq_importers import imported, source_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import AutoencoderKL

SIZE = {"image_size_px": "32"}
DDCONFIG = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 32,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [16],
    "dropout": 0.0,
}
ALONE = {"model": {"params": {"embed_dim": 3, "ddconfig": DDCONFIG}}}
WHOLE = {
    "model": {
        "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
        "params": {"scale_factor": 0.18215, "first_stage_config": ALONE["model"]},
    }
}


def kl(**more):
    """Return diffusers' class, small, with random weights."""
    given = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "latent_channels": 4,
        "sample_size": 64,
    }
    model = AutoencoderKL(**{**given, **more}).eval()
    model.load_state_dict(weights({name: t.shape for name, t in model.state_dict().items()}))
    return model


def loaded(made):
    autoencoder = KlAutoencoder(made.config)
    autoencoder.load_state_dict(made.tensors)
    return autoencoder.eval()


@pytest.mark.parametrize(
    ("more", "mean", "std"),
    [
        ({"scaling_factor": 0.18215}, 0.0, 1 / 0.18215),  # as Stable Diffusion 1.5
        ({"scaling_factor": 0.13025, "norm_num_groups": 16}, 0.0, 1 / 0.13025),  # SDXL
        (
            {
                "scaling_factor": 0.3611,
                "shift_factor": 0.1159,
                "latent_channels": 8,
                "use_quant_conv": False,
                "use_post_quant_conv": False,
            },
            0.1159,
            1 / 0.3611,
        ),  # FLUX.1
        ({"mid_block_add_attention": False, "scaling_factor": 1.0}, 0.0, 1.0),
    ],
)
def test_moments_and_images_are_those_of_diffusers(tmp_path, more, mean, std):
    theirs = kl(**more)
    theirs.save_pretrained(tmp_path)
    made = imported(open_source(tmp_path))
    ours = loaded(made)
    assert (made.kind, made.config.image_size_px) == ("kl", 64)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.inference_mode():
        posterior = theirs.encode(images).latent_dist
        our_mean, our_std = ours.posterior(images)
        torch.testing.assert_close(our_mean, (posterior.mean - mean) / std, atol=1e-5, rtol=0)
        torch.testing.assert_close(our_std, posterior.std / std, atol=1e-5, rtol=1e-5)
        assert torch.equal(ours.encode(images), our_mean)
        decoded = theirs.decode(posterior.mean).sample.clamp(-1, 1)
        torch.testing.assert_close(ours.decode(our_mean), decoded, atol=1e-5, rtol=0)


def test_figures_of_each_channel_are_taken():
    theirs = kl(latents_mean=(1.0, 2.0, 3.0, 4.0), latents_std=(5.0, 6.0, 7.0, 8.0), scaling_factor=0.5)
    made = imported(source_of(theirs.state_dict(), {**theirs.config, "_class_name": "AutoencoderKL"}))
    assert made.tensors["latent_mean"].flatten().tolist() == [1, 2, 3, 4]
    assert made.tensors["latent_std"].flatten().tolist() == [10, 12, 14, 16]


def test_former_names_of_attention_and_the_part_of_a_pipeline_are_known():
    theirs = kl()
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in theirs.state_dict().items():
        for new, old in former.items():
            name = name.replace(f".{new}.", f".{old}.")
        tensors[name] = tensor
    config = {**theirs.config, "_class_name": "AutoencoderKL"}
    part = Source(Path("vae"), tensors, config)
    pipeline = Source(Path("sd"), {}, {"_class_name": "StableDiffusionPipeline"}, parts={"vae": part})
    (made,), name = read_source(pipeline, {})
    assert name == "diffusers-kl"
    today = imported(source_of(theirs.state_dict(), config))
    assert all(torch.equal(made.tensors[name], today.tensors[name]) for name in today.tensors)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scaling_factor": 0}, "scaling_factor must be positive"),
        ({"scaling_factor": "much"}, "scaling_factor must be a number"),
        ({"latents_mean": [1.0]}, "latents_mean must be a list of 4 numbers"),
        ({"latents_std": [1.0, 1.0, 1.0, -1.0]}, "latents_std must be positive"),
        ({"latent_channels": 5}, "of another shape"),
        ({"use_quant_conv": False}, "left over"),
        ({"act_fn": "gelu"}, "act_fn must be 'silu'"),
    ],
)
def test_a_configuration_that_contradicts_the_weights_is_refused(change, said):
    theirs = kl()
    config = json.loads(json.dumps({**theirs.config, "_class_name": "AutoencoderKL", **change}))
    with pytest.raises(ImportFailed, match=said):
        imported(source_of(theirs.state_dict(), config))


@pytest.mark.parametrize("wrapper", ["", "first_stage_model."])
def test_moments_and_images_are_those_of_latent_diffusion(wrapper):
    tensors, expected = small("ldm-kl")
    given = {f"{wrapper}{name}": tensor for name, tensor in tensors.items()}
    given |= {f"{wrapper}loss.logvar": torch.zeros(())}
    if wrapper:
        given |= {"model.diffusion_model.out.2.weight": torch.zeros(4, 8, 3, 3)}
    scale = 0.18215 if wrapper else 1.0
    made = imported(source_of(given, WHOLE if wrapper else ALONE))
    ours = loaded(made)
    with torch.inference_mode():
        mean, std = ours.posterior(expected["images"])
        torch.testing.assert_close(mean, expected["mean"] * scale, atol=1e-5, rtol=0)
        torch.testing.assert_close(std, expected["std"] * scale, atol=1e-5, rtol=1e-5)
        decoded = ours.decode(expected["sample"] * scale)
        torch.testing.assert_close(decoded, expected["decoded"].clamp(-1, 1), atol=1e-5, rtol=0)
        sampled = mean + std * expected["noise"]
        torch.testing.assert_close(sampled, expected["sample"] * scale, atol=1e-5, rtol=0)


def test_the_factor_of_latents_is_told_measured_given_or_noted():
    tensors, _ = small("ldm-kl")
    noted = imported(source_of(tensors, ALONE))
    assert noted.tensors["latent_std"].unique().tolist() == [1]
    assert any("--set scaling_factor" in note for note in noted.notes)
    given = imported(source_of(tensors, ALONE), {"scaling_factor": "0.5"})
    assert given.tensors["latent_std"].unique().tolist() == [2]
    inside = {f"first_stage_model.{name}": tensor for name, tensor in tensors.items()}
    measured = imported(source_of(inside | {"scale_factor": torch.tensor(0.25)}, {}))
    assert measured.tensors["latent_std"].unique().tolist() == [4]
    with pytest.raises(ImportFailed, match="scaling_factor must be a positive number, got '-1'"):
        imported(source_of(tensors, ALONE), {"scaling_factor": "-1"})


def test_a_yaml_of_another_model_is_refused():
    tensors, _ = small("ldm-kl")
    other = {"model": {"params": {"embed_dim": 16, "ddconfig": DDCONFIG}}}
    with pytest.raises(ImportFailed, match="embed_dim 16, but the tensors are those of 3"):
        imported(source_of(tensors, other))


@pytest.mark.parametrize(
    ("name", "channels", "factor", "levels"),
    [
        ("ldm-kl-f4", 3, 4, (128, 256, 512)),
        ("ldm-kl-f8", 4, 8, (128, 256, 512, 512)),
        ("ldm-kl-f16", 16, 16, (128, 128, 256, 256, 512)),
        ("ldm-kl-f32", 64, 32, (128, 128, 256, 256, 512, 512)),
        ("diffusers-kl-sd", 4, 8, (128, 256, 512, 512)),
        ("diffusers-kl-flux", 16, 8, (128, 256, 512, 512)),
    ],
)
def test_every_tensor_of_the_full_sizes_has_its_place(name, channels, factor, levels):
    config = {}
    if name.startswith("diffusers"):
        config = {
            "_class_name": "AutoencoderKL",
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "block_out_channels": list(levels),
            "layers_per_block": 2,
            "latent_channels": channels,
        }
        if name.endswith("flux"):
            config |= {"use_quant_conv": False, "use_post_quant_conv": False}
    made = imported(source_of(full_size(name), config))
    network = made.config.network
    assert (made.config.latent_channels, network.downsample_factor, network.level_channels) == (
        channels,
        factor,
        levels,
    )
    with torch.device("meta"):
        shapes = {key: t.shape for key, t in KlAutoencoder(made.config).state_dict().items()}
    assert {key: t.shape for key, t in made.tensors.items()} == shapes


def test_a_changed_scale_is_another_tokenizer():
    ours = loaded(imported(source_of(small("ldm-kl")[0], ALONE)))
    other = loaded(imported(source_of(small("ldm-kl")[0], ALONE), {"scaling_factor": "0.5"}))
    assert ours.fingerprint() != other.fingerprint()
    assert replace(ours.config) == other.config
