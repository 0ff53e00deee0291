"""Tiny autoencoders: TAESD and its relatives, which stand in for a diffusion model's own.

Ollin Boer Bohan (github.com/madebyollin/taesd): plain convolutions, distilled from a KL autoencoder.
"""

from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.autoencoders.quantizers import keep_infinite
from models.checkpoint import fingerprint, load_checkpoint, load_into, set_fields
from models.options import CHECKED, ConfigError

Blocks = Annotated[tuple[Annotated[int, Field(ge=0, le=16)], ...], Field(min_length=2, max_length=7)]
_POOL_GROWTH, _POOL_GROUPS = 4, 4
_LATENT_LIMIT = 3.0  # the decoder squashes latents to ±3


@dataclass(frozen=True, config=CHECKED)
class TinyConfig:
    """A tiny autoencoder.

    ``encoder_blocks`` and ``decoder_blocks``: residual blocks at each resolution, in their order of
    computing. ``has_pool``: those at the latents' resolution also see statistics of the whole picture, as in
    TAEF2.
    """

    image_channels: Annotated[int, Field(ge=1, le=3)] = 3
    image_size_px: Annotated[int, Field(ge=4, le=4096)] = 512
    latent_channels: Annotated[int, Field(ge=1, le=1024)] = 4
    hidden_channels: Annotated[int, Field(ge=4, le=1024, multiple_of=4)] = 64
    encoder_blocks: Blocks = (1, 3, 3, 3)
    decoder_blocks: Blocks = (3, 3, 3, 1)
    has_pool: bool = False

    def __post_init__(self) -> None:
        if self.image_channels == 2:
            raise ConfigError("image_channels must be 1 or 3, got 2")
        if len(self.encoder_blocks) != len(self.decoder_blocks):
            raise ConfigError(
                "encoder_blocks and decoder_blocks must be as many, got"
                f" {len(self.encoder_blocks)} and {len(self.decoder_blocks)}"
            )
        if self.image_size_px % self.downsample_factor:
            raise ConfigError(
                f"image_size_px must be a multiple of {self.downsample_factor}, the pixels behind a latent,"
                f" got {self.image_size_px}"
            )

    @property
    def downsample_factor(self) -> int:
        """The side in pixels of the square behind one latent."""
        return 2 ** (len(self.encoder_blocks) - 1)


class Block(nn.Module):
    """Three 3×3 convolutions beside a skip connection; before them, maybe, statistics of the picture."""

    def __init__(self, channels: int, *, has_pool: bool) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _convolution(channels, channels),
            nn.ReLU(),
            _convolution(channels, channels),
            nn.ReLU(),
            _convolution(channels, channels),
        )
        self.pool: nn.Module | None = None
        if has_pool:
            wide = channels * _POOL_GROWTH
            self.pool = nn.Sequential(
                nn.Conv2d(channels, wide, 1, bias=False),
                nn.GroupNorm(_POOL_GROUPS, wide),
                nn.ReLU(),
                nn.Conv2d(wide, channels, 1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class Squash(nn.Module):
    """Keep latents within ±3, softly."""

    def forward(self, latents: Tensor) -> Tensor:
        return torch.tanh(latents / _LATENT_LIMIT) * _LATENT_LIMIT


class TinyAutoencoder(nn.Module):
    """A frozen pair of functions between images and latents. Its layers have their publisher's numbers.

    Latents are those of the autoencoder that it stands in for, scaled as its diffusion model wants them.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _make_encoder(config)
        self.decoder = _make_decoder(config)
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(config.latent_channels, 1, 1))

    @classmethod
    def load(cls, path: Path) -> "TinyAutoencoder":
        """Load one safetensors file that knows its own configuration; frozen.

        Raises: CheckpointError.
        """
        tensors, config = load_checkpoint(path, TinyConfig)
        autoencoder = cls(config)
        load_into(autoencoder, tensors, path)
        return autoencoder.eval().requires_grad_(False)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(d, *grid) of one sample's latents."""
        side = self.config.image_size_px // self.config.downsample_factor
        return (self.config.latent_channels, side, side)

    @property
    def signal_shape(self) -> tuple[int, ...]:
        """(C, *size) of one sample's signal."""
        return (self.config.image_channels, self.config.image_size_px, self.config.image_size_px)

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that tell this autoencoder, and so its latents, from all others."""
        return fingerprint(set_fields(self.config), self.state_dict())

    def encode(self, images: Tensor) -> Tensor:
        """Return scaled latents (B, d, h, w) float32 of ``images`` (B, C, H, W) in [-1, 1]."""
        return (self.encoder((images + 1) / 2).float() - self.latent_mean) / self.latent_std

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, C, H, W) float32 in [-1, 1] of scaled ``latents`` (B, d, h, w)."""
        images = self.decoder(latents * self.latent_std + self.latent_mean).float() * 2 - 1
        return keep_infinite(images.clamp(-1, 1), images)


def _make_encoder(config: TinyConfig) -> nn.Sequential:
    hidden, last = config.hidden_channels, len(config.encoder_blocks) - 1
    layers: list[nn.Module] = []
    for place, num_blocks in enumerate(config.encoder_blocks):
        if place == 0:
            layers.append(_convolution(config.image_channels, hidden))
        else:
            layers.append(nn.Conv2d(hidden, hidden, 3, stride=2, padding=1, bias=False))
        layers += [Block(hidden, has_pool=config.has_pool and place == last) for _ in range(num_blocks)]
    return nn.Sequential(*layers, _convolution(hidden, config.latent_channels))


def _make_decoder(config: TinyConfig) -> nn.Sequential:
    hidden, last = config.hidden_channels, len(config.decoder_blocks) - 1
    layers: list[nn.Module] = [Squash(), _convolution(config.latent_channels, hidden), nn.ReLU()]
    for place, num_blocks in enumerate(config.decoder_blocks):
        layers += [Block(hidden, has_pool=config.has_pool and place == 0) for _ in range(num_blocks)]
        if place < last:
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(hidden, hidden, 3, padding=1, bias=False)]
    return nn.Sequential(*layers, _convolution(hidden, config.image_channels))


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)
