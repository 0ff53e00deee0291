"""Tokenizers as diffusers' ``VQModel``: the folder ``vqvae``."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from models.autoencoders.vqgan import Vqgan
from models.exporters.base import ExportFailed
from models.importers.diffusers_vq import vqmodel_name
from models.networks.ldm_autoencoder import LdmConfig
from models.pipeline import Pipeline

FOLDER = "vqvae"
# With entries of length 1, the nearest to a vector has the smallest angle to it, too.
_NEAREST = ("euclidean", "cosine")
_FIGURES = ("latent_mean", "latent_std")


def write_vqmodel(pipeline: Pipeline, folder: Path) -> None:
    """Write a tokenizer so that diffusers has the same codes of images, and the same images of codes.

    ``lookup_from_codebook`` is set, so that ``decode(codes, force_not_quantize=True, shape=(B, h, w, d))``
    takes codes; latents are taken as always.

    Raises: ExportFailed, before anything is written.
    """
    vqgan = pipeline.autoencoder
    if not isinstance(vqgan, Vqgan):
        raise ExportFailed(
            "a tokenizer of the kind vq can't be written as a VQModel, which has no layers that turn pixels"
            " into channels and back; its own convolutions see fewer pixels at once, so that no weights of"
            " it compute the same"
        )
    config = _config(vqgan, _network(vqgan))
    tensors = {
        vqmodel_name(name, _network(vqgan)): tensor.detach().cpu().float().contiguous()
        for name, tensor in vqgan.state_dict().items()
        if name not in _FIGURES
    }
    part = folder / FOLDER
    part.mkdir()
    save_file(tensors, part / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    (part / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _network(vqgan: Vqgan) -> LdmConfig:
    """Return the shape of networks that a VQModel can have.

    Raises: ExportFailed saying what it can't.
    """
    config, network = vqgan.config, vqgan.config.network
    if not isinstance(network, LdmConfig):
        raise ExportFailed(f"a VQModel has no networks of the style {network.style}")
    if config.lookup not in _NEAREST:
        raise ExportFailed(f"a VQModel looks up the nearest entry, not by {config.lookup}")
    if network.has_tanh:
        raise ExportFailed("a VQModel's decoder can't end with a tanh")
    if network.stem_channels not in (None, network.level_channels[0]):
        raise ExportFailed(
            f"a VQModel's first convolution has the channels of its first level, {network.level_channels[0]};"
            f" here it has {network.stem_channels}"
        )
    if not config.has_projections or config.is_from_zero:
        raise ExportFailed("a VQModel has 1×1 convolutions around its codebook, and images in [-1, 1]")
    return network


def _config(vqgan: Vqgan, network: LdmConfig) -> dict[str, object]:
    """Return what ``config.json`` says.

    Raises: ExportFailed where the latents' mean and deviation are no single factor.
    """
    scale = vqgan.latent_std.flatten()[0]
    if vqgan.latent_mean.any() or not torch.equal(vqgan.latent_std, scale.expand_as(vqgan.latent_std)):
        raise ExportFailed("a VQModel has one scaling_factor, not a mean and a deviation of each channel")
    levels = range(len(network.level_channels))
    kinds = ["Attn" if level in network.attention_levels else "" for level in levels]
    return {
        "_class_name": "VQModel",
        "act_fn": "silu",
        "in_channels": network.image_channels,
        "out_channels": network.image_channels,
        "down_block_types": [f"{kind}DownEncoderBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpDecoderBlock2D" for kind in reversed(kinds)],
        "block_out_channels": list(network.level_channels),
        "layers_per_block": network.num_blocks,
        "latent_channels": network.latent_channels,
        "sample_size": vqgan.config.image_size_px,
        "num_vq_embeddings": vqgan.config.codebook_size,
        "vq_embed_dim": vqgan.config.code_channels,
        "norm_num_groups": network.num_groups,
        "norm_type": "group",
        "mid_block_add_attention": network.has_middle_attention,
        "lookup_from_codebook": True,
        "scaling_factor": 1 / scale.item(),
    }
