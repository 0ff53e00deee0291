"""KL autoencoders as diffusers' ``AutoencoderKL``: the folder ``vae``."""

from pathlib import Path

import torch

from models.autoencoders.kl import KlAutoencoder
from models.exporters.base import ExportFailed
from models.exporters.diffusers_files import network_config, write_part
from models.importers.diffusers_kl import kl_name
from models.pipeline import Pipeline

FOLDER = "vae"
_FIGURES = ("latent_mean", "latent_std")


def write_autoencoder_kl(pipeline: Pipeline, folder: Path) -> None:
    """Write an autoencoder so that diffusers has the same latents of images, and the same images of latents.

    Ours are scaled: (z − shift_factor) · scaling_factor of theirs.

    Raises: ExportFailed, before anything is written.
    """
    autoencoder = pipeline.autoencoder
    assert isinstance(autoencoder, KlAutoencoder)
    config = autoencoder.config
    network = config.network
    if config.latent_channels != network.latent_channels:
        raise ExportFailed(
            f"an AutoencoderKL's latents have the channels of its networks, {network.latent_channels}; here"
            f" they have {config.latent_channels}"
        )
    shift, scale = autoencoder.latent_mean.flatten()[0], autoencoder.latent_std.flatten()[0]
    if not (
        torch.equal(autoencoder.latent_mean, shift.expand_as(autoencoder.latent_mean))
        and torch.equal(autoencoder.latent_std, scale.expand_as(autoencoder.latent_std))
    ):
        raise ExportFailed(
            "an AutoencoderKL has one shift_factor and one scaling_factor, not those of channels"
        )
    said = {
        "_class_name": "AutoencoderKL",
        **network_config(network),
        "sample_size": config.image_size_px,
        "use_quant_conv": config.projects_moments,
        "use_post_quant_conv": config.projects_latents,
        "scaling_factor": 1 / scale.item(),
        "shift_factor": shift.item() or None,
    }
    tensors = {
        kl_name(name, network): tensor
        for name, tensor in autoencoder.state_dict().items()
        if name not in _FIGURES
    }
    write_part(folder / FOLDER, said, tensors)
