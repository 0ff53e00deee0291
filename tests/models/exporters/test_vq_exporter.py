import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.autoencoders.vq import Tokenizer, TokenizerConfig
from models.autoencoders.vqgan import Vqgan, VqganConfig
from models.exporters.base import ExportFailed
from models.importers import compvis_vq
from models.importers.base import Source
from models.importers.building import build
from models.importers.formats import read_source
from models.importers.sources import open_source
from models.networks.ldm_autoencoder import LdmConfig
from models.networks.magvit_autoencoder import MagvitConfig
from models.pipeline import Pipeline
from models.registry import EXPORTERS, load_kind
from models.spec import CodesSpec, PipelineSpec
from tests.models.importers.published import small, weights

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import VQModel

SIZE = {"image_size_px": "32"}
NETWORK = LdmConfig(
    latent_channels=3, level_channels=(8, 16), num_blocks=1, attention_levels=(1,), num_groups=4
)
CONFIG = VqganConfig(network=NETWORK, image_size_px=16, codebook_size=40, code_channels=4)


def pipeline_of(config):
    """Return a pipeline that encodes and decodes, with random weights."""
    vqgan = Vqgan(config)
    figures = {name: vqgan.get_buffer(name) for name in ("latent_mean", "latent_std")}
    vqgan.load_state_dict(weights({name: t.shape for name, t in vqgan.state_dict().items()}) | figures)
    if config.lookup == "cosine":
        codebook = vqgan.quantizer.codebook
        codebook.copy_(torch.nn.functional.normalize(codebook, dim=-1))
    return in_pipeline(vqgan)


def in_pipeline(autoencoder):
    channels, height, width = autoencoder.signal_shape
    spec = PipelineSpec(
        name="own",
        makes=({"medium": "image", "width_px": width, "height_px": height, "channels": channels},),
        latents=autoencoder.latent_shape,
        autoencoders={"image": "vqgan"},
        codes=CodesSpec(autoencoder.latent_shape[1:], 40, autoencoder.fingerprint()),
    )
    return Pipeline(spec, autoencoder, None, torch.device("cpu"), torch.float32)


def export(pipeline, folder, kind="vqgan"):
    load_kind(EXPORTERS["diffusers"], kind)(pipeline, folder)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, lookup="cosine"),
        replace(CONFIG, network=replace(NETWORK, has_middle_attention=False, attention_levels=())),
    ],
)
def test_diffusers_has_the_same_codes_and_the_same_images_of_them(tmp_path, config):
    pipeline = pipeline_of(config)
    export(pipeline, tmp_path)
    theirs = VQModel.from_pretrained(tmp_path / "vqvae").eval()
    ours = pipeline.autoencoder
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.inference_mode():
        latents = theirs.encode(images).latents
        codes = ours.quantize(ours.encode(images)).codes
        assert torch.allclose(ours.encode(images), latents, atol=1e-5)
        assert torch.equal(theirs.quantize(latents)[2][2].view(2, 8, 8), codes)
        shape = (2, 8, 8, 4)
        decoded = theirs.decode(codes.flatten(), force_not_quantize=True, shape=shape).sample.clamp(-1, 1)
        assert torch.allclose(ours.decode(ours.lookup(codes)), decoded, atol=1e-5)
        assert torch.allclose(theirs.decode(latents).sample.clamp(-1, 1), decoded, atol=1e-5)


def test_exported_tokenizer_comes_in_again_as_it_was(tmp_path):
    tensors, _ = small("taming")
    pipeline = build([compvis_vq.read(Source(Path("vqgan.ckpt"), tensors), SIZE)], tmp_path / "own", "own")
    export(pipeline, tmp_path)
    read, _ = read_source(open_source(tmp_path / "vqvae", scratch=tmp_path), SIZE)
    again = build(read, tmp_path / "again", "again")
    assert again.spec.codes == pipeline.spec.codes


def test_scale_of_latents_becomes_the_scaling_factor(tmp_path):
    pipeline = pipeline_of(CONFIG)
    pipeline.autoencoder.latent_std.fill_(4.0)
    export(pipeline, tmp_path)
    assert VQModel.load_config(tmp_path / "vqvae")["scaling_factor"] == 0.25


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lookup": "dot_product"}, "looks up the nearest entry, not by dot_product"),
        ({"network": replace(NETWORK, has_tanh=True)}, "can't end with a tanh"),
        ({"network": replace(NETWORK, stem_channels=16)}, "the first level, 8; here it has 16"),
        ({"is_from_zero": True}, r"images in \[-1, 1\]"),
        (
            {"network": MagvitConfig("simvq", level_channels=(32, 32), stem_channels=32)},
            "no networks of the style simvq",
        ),
    ],
)
def test_what_a_vqmodel_can_not_be_is_refused_with_nothing_written(tmp_path, fields, message):
    with pytest.raises(ExportFailed, match=message):
        export(pipeline_of(replace(CONFIG, **fields)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_means_of_latents_are_refused(tmp_path):
    pipeline = pipeline_of(CONFIG)
    pipeline.autoencoder.latent_mean[1] = 0.5
    with pytest.raises(ExportFailed, match="one scaling_factor"):
        export(pipeline, tmp_path)


def test_tokenizer_of_ours_is_refused_with_the_reason(tmp_path):
    own = in_pipeline(Tokenizer(TokenizerConfig(hidden_channels=8, num_blocks=0)))
    with pytest.raises(ExportFailed, match="no layers that turn pixels into channels"):
        export(own, tmp_path, "vq")
