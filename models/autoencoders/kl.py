"""KL autoencoders of pictures, the continuous siblings of VQGAN: latents with a normal distribution.

Rombach et al. 2022 (arXiv:2112.10752), section 3.1: the networks of ``ldm_autoencoder.py``
without a codebook.
"""

from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.autoencoders.gaussians import split_moments
from models.autoencoders.quantizers import keep_infinite
from models.checkpoint import fingerprint, load_checkpoint, load_into, set_fields
from models.networks.ldm_autoencoder import Channels, LdmConfig, LdmDecoder, LdmEncoder
from models.options import CHECKED, ConfigError


@dataclass(frozen=True, config=CHECKED)
class KlConfig:
    """A KL autoencoder: its two networks, and the pictures it is for.

    ``latent_channels``: of the latents outside of the networks. ``projects_moments`` and
    ``projects_latents``: 1×1 convolutions lead from the encoder to the moments, and from the latents to the
    decoder.
    """

    network: LdmConfig = LdmConfig(latent_channels=4, has_moments=True)
    image_size_px: Annotated[int, Field(ge=4, le=4096)] = 256
    latent_channels: Channels = 4
    projects_moments: bool = True
    projects_latents: bool = True

    def __post_init__(self) -> None:
        if self.network.image_channels not in (1, 3):
            raise ConfigError(f"network.image_channels must be 1 or 3, got {self.network.image_channels}")
        if not self.network.has_moments:
            raise ConfigError("network.has_moments must be true: a KL autoencoder has a mean and a variance")
        if self.image_size_px % self.network.downsample_factor:
            raise ConfigError(
                f"image_size_px must be a multiple of {self.network.downsample_factor}, the pixels behind a"
                f" latent, got {self.image_size_px}"
            )
        has_both = self.projects_moments and self.projects_latents
        if not has_both and self.latent_channels != self.network.latent_channels:
            raise ConfigError(
                f"latent_channels must be the network's {self.network.latent_channels} without both"
                f" projections, got {self.latent_channels}"
            )


class KlAutoencoder(nn.Module):
    """A frozen encoder to distributions of latents, and a decoder of latents.

    Latents are scaled by ``latent_mean`` and ``latent_std``: what others call a shift factor f and a scaling
    factor s are f and 1/s.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: KlConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = LdmEncoder(config.network)
        self.decoder = LdmDecoder(config.network)
        inner, outer = config.latent_channels, config.network.latent_channels
        self.to_moments: nn.Module = (
            nn.Conv2d(2 * outer, 2 * inner, 1) if config.projects_moments else nn.Identity()
        )
        self.from_latents: nn.Module = (
            nn.Conv2d(inner, outer, 1) if config.projects_latents else nn.Identity()
        )
        self.register_buffer("latent_mean", torch.zeros(inner, 1, 1))
        self.register_buffer("latent_std", torch.ones(inner, 1, 1))

    @classmethod
    def load(cls, path: Path) -> "KlAutoencoder":
        """Load one safetensors file that knows its own configuration; frozen.

        Raises: CheckpointError.
        """
        tensors, config = load_checkpoint(path, KlConfig)
        autoencoder = cls(config)
        load_into(autoencoder, tensors, path)
        return autoencoder.eval().requires_grad_(False)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(d, *grid) of one sample's latents."""
        side = self.config.image_size_px // self.config.network.downsample_factor
        return (self.config.latent_channels, side, side)

    @property
    def signal_shape(self) -> tuple[int, ...]:
        """(C, *size) of one sample's signal."""
        return (self.config.network.image_channels, self.config.image_size_px, self.config.image_size_px)

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that tell this autoencoder, and so its latents, from all others."""
        return fingerprint(set_fields(self.config), self.state_dict())

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation (B, d, h, w) float32, scaled, of ``images`` in [-1, 1]."""
        mean, log_variance = split_moments(self.to_moments(self.encoder(images)))
        std = (log_variance / 2).exp()
        return (mean - self.latent_mean) / self.latent_std, std / self.latent_std

    def encode(self, images: Tensor) -> Tensor:
        """Return the mean of scaled latents (B, d, h, w) float32 of ``images`` (B, C, H, W) in [-1, 1]."""
        return self.posterior(images)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, C, H, W) float32 in [-1, 1] of scaled ``latents`` (B, d, h, w)."""
        images = self.decoder(self.from_latents(latents * self.latent_std + self.latent_mean)).float()
        return keep_infinite(images.clamp(-1, 1), images)
