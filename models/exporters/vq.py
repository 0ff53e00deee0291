"""Tokenizers as diffusers' ``VQModel``: the folder ``vqvae``."""

from pathlib import Path

import torch

from models.autoencoders.vqgan import Vqgan
from models.exporters.base import ExportFailed
from models.exporters.diffusers_files import network_config, write_part
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
        vqmodel_name(name, _network(vqgan)): tensor
        for name, tensor in vqgan.state_dict().items()
        if name not in _FIGURES
    }
    write_part(folder / FOLDER, config, tensors)


def _network(vqgan: Vqgan) -> LdmConfig:
    """Return the shape of networks that a VQModel can have.

    Raises: ExportFailed saying what it can't.
    """
    config, network = vqgan.config, vqgan.config.network
    if not isinstance(network, LdmConfig):
        raise ExportFailed(f"a VQModel has no networks of the style {network.style}")
    if config.lookup not in _NEAREST:
        raise ExportFailed(f"a VQModel looks up the nearest entry, not by {config.lookup}")
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
    return {
        "_class_name": "VQModel",
        **network_config(network),
        "sample_size": vqgan.config.image_size_px,
        "num_vq_embeddings": vqgan.config.codebook_size,
        "vq_embed_dim": vqgan.config.code_channels,
        "norm_type": "group",
        "lookup_from_codebook": True,
        "scaling_factor": 1 / scale.item(),
    }
