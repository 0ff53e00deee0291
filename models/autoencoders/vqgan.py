"""Public tokenizers of pictures: VQGAN's networks and their relatives around a frozen codebook."""

from pathlib import Path
from typing import Annotated, cast

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.autoencoders.lookups import Lookup, LookupName, make_lookup
from models.autoencoders.quantizers import Quantized, keep_infinite
from models.checkpoint import fingerprint, load_checkpoint, load_into, set_fields
from models.networks.ldm_autoencoder import Channels, LdmConfig, LdmDecoder, LdmEncoder
from models.networks.magvit_autoencoder import MagvitConfig, MagvitDecoder, MagvitEncoder
from models.options import CHECKED, ConfigError


@dataclass(frozen=True, config=CHECKED)
class VqganConfig:
    """A tokenizer: its two networks, the codebook between them, and the pictures it is for.

    ``code_channels``: of a codebook's entry, and of the latents that are looked up. ``has_projections``: 1×1
    convolutions lead from the encoder to them, and from them to the decoder. ``is_from_zero``: the networks
    know pictures in [0, 1] instead of [-1, 1].
    """

    network: LdmConfig | MagvitConfig = LdmConfig()
    image_size_px: Annotated[int, Field(ge=4, le=4096)] = 256
    codebook_size: Annotated[int, Field(ge=2, le=2**20)] = 1024
    code_channels: Channels = 256
    lookup: LookupName = "euclidean"
    has_projections: bool = True
    is_from_zero: bool = False

    def __post_init__(self) -> None:
        if self.network.image_channels not in (1, 3):
            raise ConfigError(f"network.image_channels must be 1 or 3, got {self.network.image_channels}")
        if self.image_size_px % self.network.downsample_factor:
            raise ConfigError(
                f"image_size_px must be a multiple of {self.network.downsample_factor}, the pixels behind a"
                f" code, got {self.image_size_px}"
            )
        if not self.has_projections and self.code_channels != self.network.latent_channels:
            raise ConfigError(
                f"code_channels must be the network's latent_channels {self.network.latent_channels} without"
                f" projections, got {self.code_channels}"
            )
        if self.lookup == "signs" and self.codebook_size != 2**self.code_channels:
            raise ConfigError(
                f"codebook_size must be 2 to the power of code_channels {self.code_channels} where signs are"
                f" looked up, got {self.codebook_size}"
            )
        if isinstance(self.network, LdmConfig) and self.network.has_moments:
            raise ConfigError("network.has_moments is for autoencoders without a codebook")

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of codes."""
        side = self.image_size_px // self.network.downsample_factor
        return side, side


class Vqgan(nn.Module):
    """A frozen pair of functions between images and codes, with the latents between them.

    ``encode`` returns what is looked up, so latents before they are quantised. ``latent_mean`` and
    ``latent_std`` are 0 and 1 unless a prior that was trained on other figures came with others.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder: nn.Module
        self.decoder: nn.Module
        if isinstance(config.network, LdmConfig):
            self.encoder, self.decoder = LdmEncoder(config.network), LdmDecoder(config.network)
        else:
            self.encoder, self.decoder = MagvitEncoder(config.network), MagvitDecoder(config.network)
        inner, outer = config.code_channels, config.network.latent_channels
        self.to_codes: nn.Module = nn.Conv2d(outer, inner, 1) if config.has_projections else nn.Identity()
        self.from_codes: nn.Module = nn.Conv2d(inner, outer, 1) if config.has_projections else nn.Identity()
        self.quantizer = make_lookup(config.lookup, config.codebook_size, inner)
        self.register_buffer("latent_mean", torch.zeros(inner, 1, 1))
        self.register_buffer("latent_std", torch.ones(inner, 1, 1))

    @classmethod
    def load(cls, path: Path) -> "Vqgan":
        """Load one safetensors file that knows its own configuration; frozen.

        Raises: CheckpointError.
        """
        tensors, config = load_checkpoint(path, VqganConfig)
        vqgan = cls(config)
        load_into(vqgan, tensors, path)
        return vqgan.eval().requires_grad_(False)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(d, *grid) of one sample's latents."""
        return (self.config.code_channels, *self.config.grid)

    @property
    def signal_shape(self) -> tuple[int, ...]:
        """(C, *size) of one sample's signal."""
        return (self.config.network.image_channels, self.config.image_size_px, self.config.image_size_px)

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that tell this tokenizer, and so its codes, from all others."""
        return fingerprint(set_fields(self.config), self.state_dict())

    def encode(self, images: Tensor) -> Tensor:
        """Return scaled latents (B, d, h, w) float32 of ``images`` (B, C, H, W) in [-1, 1]."""
        if self.config.is_from_zero:
            images = (images + 1) / 2
        return (self.to_codes(self.encoder(images)).float() - self.latent_mean) / self.latent_std

    def quantize(self, latents: Tensor) -> Quantized:
        """Snap scaled ``latents`` (B, d, h, w) to the codebook; the result is scaled, too."""
        with torch.autocast(latents.device.type, enabled=False):
            vectors = (latents.float() * self.latent_std + self.latent_mean).movedim(1, -1)  # (B, h, w, d)
            lookup = cast(Lookup, self.quantizer)
            codes = torch.stack([lookup.nearest(each.flatten(0, -2)) for each in vectors])  # (B, h·w)
            codes = codes.view(vectors.shape[:-1])  # (B, h, w)
            return Quantized(self.lookup(codes), codes, latents.new_zeros(()))

    def lookup(self, codes: Tensor) -> Tensor:
        """Return the scaled latents (B, d, h, w) of ``codes`` (B, h, w)."""
        entries = cast(Lookup, self.quantizer).entries(codes).movedim(-1, 1)
        return (entries - self.latent_mean) / self.latent_std

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, C, H, W) float32 in [-1, 1] of scaled ``latents`` (B, d, h, w)."""
        images = self.decoder(self.from_codes(latents * self.latent_std + self.latent_mean)).float()
        if self.config.is_from_zero:
            images = images * 2 - 1
        return keep_infinite(images.clamp(-1, 1), images)
