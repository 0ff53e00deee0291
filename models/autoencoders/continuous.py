"""Autoencoders of pictures without a codebook: KL autoencoders, and small ones that share their latents."""

from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.autoencoders.quantizers import keep_infinite
from models.checkpoint import fingerprint, load_checkpoint, load_into, set_fields
from models.networks.ldm_autoencoder import Channels, LdmConfig, LdmDecoder, LdmEncoder
from models.networks.tiny_autoencoder import TinyConfig, TinyDecoder, TinyEncoder
from models.options import CHECKED, ConfigError

_LOG_VARIANCES = (-30.0, 20.0)  # what a posterior's are kept between


@dataclass(frozen=True, config=CHECKED)
class ContinuousConfig:
    """An autoencoder: its two networks, the latents between them, and the pictures it is for.

    ``latent_channels``: None for those of the network. ``has_encoder_projection`` and
    ``has_decoder_projection``: 1×1 convolutions lead from the network's channels to them, and back.
    """

    network: LdmConfig | TinyConfig
    image_size_px: Annotated[int, Field(ge=4, le=4096)] = 256
    latent_channels: Channels | None = None
    has_encoder_projection: bool = False
    has_decoder_projection: bool = False

    def __post_init__(self) -> None:
        if self.network.image_channels not in (1, 3):
            raise ConfigError(f"network.image_channels must be 1 or 3, got {self.network.image_channels}")
        if self.image_size_px % self.network.downsample_factor:
            raise ConfigError(
                f"image_size_px must be a multiple of {self.network.downsample_factor}, the pixels behind a"
                f" latent, got {self.image_size_px}"
            )
        has_both = self.has_encoder_projection and self.has_decoder_projection
        if self.num_latent_channels != self.network.latent_channels and not has_both:
            raise ConfigError(
                f"latent_channels must be the network's {self.network.latent_channels} without projections,"
                f" got {self.latent_channels}"
            )
        if isinstance(self.network, TinyConfig) and (
            self.has_encoder_projection or self.has_decoder_projection
        ):
            raise ConfigError("projections are for networks of latent diffusion")

    @property
    def num_latent_channels(self) -> int:
        """Channels of the latents."""
        return self.latent_channels or self.network.latent_channels

    @property
    def has_posterior(self) -> bool:
        """Whether a picture has a distribution of latents, instead of some."""
        return isinstance(self.network, LdmConfig) and self.network.has_moments

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of latents."""
        side = self.image_size_px // self.network.downsample_factor
        return side, side


class Continuous(nn.Module):
    """A frozen pair of functions between images and scaled latents.

    Latents are scaled by ``latent_mean`` and ``latent_std`` (d, 1, 1): a prior's figures. A KL autoencoder
    (Kingma and Welling 2014, arXiv:1312.6114; Rombach et al. 2022, arXiv:2112.10752) encodes into a normal
    distribution: ``encode`` returns its mean, ``posterior`` both.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: ContinuousConfig) -> None:
        super().__init__()
        self.config = config
        network, latents = config.network, config.num_latent_channels
        self.encoder: nn.Module
        self.decoder: nn.Module
        if isinstance(network, LdmConfig):
            self.encoder, self.decoder = LdmEncoder(network), LdmDecoder(network)
        else:
            self.encoder, self.decoder = TinyEncoder(network), TinyDecoder(network)
        outer, factor = network.latent_channels, 1 + config.has_posterior
        self.to_latents: nn.Module = nn.Identity()
        self.from_latents: nn.Module = nn.Identity()
        if config.has_encoder_projection:
            self.to_latents = nn.Conv2d(factor * outer, factor * latents, 1)
        if config.has_decoder_projection:
            self.from_latents = nn.Conv2d(latents, outer, 1)
        self.register_buffer("latent_mean", torch.zeros(latents, 1, 1))
        self.register_buffer("latent_std", torch.ones(latents, 1, 1))

    @classmethod
    def load(cls, path: Path) -> "Continuous":
        """Load one safetensors file that knows its own configuration; frozen.

        Raises: CheckpointError.
        """
        tensors, config = load_checkpoint(path, ContinuousConfig)
        autoencoder = cls(config)
        load_into(autoencoder, tensors, path)
        return autoencoder.eval().requires_grad_(False)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(d, *grid) of one sample's latents."""
        return (self.config.num_latent_channels, *self.config.grid)

    @property
    def signal_shape(self) -> tuple[int, ...]:
        """(C, *size) of one sample's signal."""
        return (self.config.network.image_channels, self.config.image_size_px, self.config.image_size_px)

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that tell this autoencoder, and so its latents, from all others."""
        return fingerprint(set_fields(self.config), self.state_dict())

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation (B, d, h, w) of the scaled latents of ``images`` (B, C, H, W).

        The deviation is 0 where the autoencoder has no posterior.
        """
        if self._knows_from_zero:
            images = (images + 1) / 2
        encoded = self.to_latents(self.encoder(images)).float()
        if not self.config.has_posterior:
            mean = (encoded - self.latent_mean) / self.latent_std
            return mean, torch.zeros_like(mean)
        mean, log_variance = encoded.chunk(2, dim=1)
        deviation = (log_variance.clamp(*_LOG_VARIANCES) / 2).exp()
        return (mean - self.latent_mean) / self.latent_std, deviation / self.latent_std

    def encode(self, images: Tensor) -> Tensor:
        """Return scaled latents (B, d, h, w) float32 of ``images`` (B, C, H, W) in [-1, 1]: the means."""
        return self.posterior(images)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, C, H, W) float32 in [-1, 1] of scaled ``latents`` (B, d, h, w)."""
        images = self.decoder(self.from_latents(latents * self.latent_std + self.latent_mean)).float()
        if self._knows_from_zero:
            images = images * 2 - 1
        return keep_infinite(images.clamp(-1, 1), images)

    @property
    def _knows_from_zero(self) -> bool:
        """Whether the networks know pictures in [0, 1]."""
        return isinstance(self.config.network, TinyConfig)
