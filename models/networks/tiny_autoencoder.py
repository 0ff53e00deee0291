"""The encoder and decoder of TAESD and its siblings: small networks that share latents with large ones.

Ollin Boer Bohan, https://github.com/madebyollin/taesd; ``AutoencoderTiny`` in diffusers. They know pictures
in [0, 1]. Plain convolutions with ReLU, and no norm but in ``pool``.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.options import CHECKED, ConfigError

Channels = Annotated[int, Field(ge=1, le=8192)]
NumBlocks = Annotated[int, Field(ge=0, le=32)]
_POOL_FACTOR = 4  # that a block's pool is wider than the block
_POOL_GROUPS = 4
_LATENT_BOUND = 3.0  # what the decoder takes lies softly between this and its negative


@dataclass(frozen=True, config=CHECKED)
class TinyConfig:
    """The shape of the two networks.

    ``encoder_blocks`` start at full resolution, and their number says how often it is halved: once less;
    ``decoder_blocks`` start at that of the latents, and are as many. ``has_pools``: the blocks at that
    resolution also see a norm over the whole picture (FLUX.2's).
    """

    image_channels: Annotated[int, Field(ge=1, le=16)] = 3
    latent_channels: Channels = 4
    hidden_channels: Channels = 64
    encoder_blocks: Annotated[tuple[NumBlocks, ...], Field(min_length=1, max_length=8)] = (1, 3, 3, 3)
    decoder_blocks: Annotated[tuple[NumBlocks, ...], Field(min_length=1, max_length=8)] = (3, 3, 3, 1)
    has_pools: bool = False

    def __post_init__(self) -> None:
        if len(self.encoder_blocks) != len(self.decoder_blocks):
            raise ConfigError(
                "encoder_blocks and decoder_blocks must be as many, got"
                f" {self.encoder_blocks} and {self.decoder_blocks}"
            )

    @property
    def downsample_factor(self) -> int:
        """The side in pixels of the square behind one latent."""
        return 2 ** (len(self.encoder_blocks) - 1)


class TinyBlock(nn.Module):
    """Three 3×3 convolutions beside a skip connection."""

    def __init__(self, channels: int, *, has_pool: bool) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3))
        self.pool: nn.Module | None = None
        if has_pool:
            inner = _POOL_FACTOR * channels
            self.pool = nn.Sequential(
                nn.Conv2d(channels, inner, 1, bias=False),
                nn.GroupNorm(_POOL_GROUPS, inner),
                nn.ReLU(inplace=True),
                nn.Conv2d(inner, channels, 1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        h = F.relu(self.conv1(x), inplace=True)
        h = self.conv3(F.relu(self.conv2(h), inplace=True))
        return F.relu(h.add_(x), inplace=True)


class TinyLevel(nn.Module):
    """The blocks of one resolution, after or before the convolution that leads from or to another."""

    def __init__(
        self, num_blocks: int, channels: int, *, has_pools: bool, resample: nn.Module | None
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(TinyBlock(channels, has_pool=has_pools) for _ in range(num_blocks)))
        self.resample = resample


class TinyEncoder(nn.Module):
    """Images (B, C, H, W) in [0, 1] → latents (B, d, H/f, W/f)."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        width, last = config.hidden_channels, len(config.encoder_blocks) - 1
        self.stem = nn.Conv2d(config.image_channels, width, 3, padding=1)
        self.levels = nn.ModuleList(
            TinyLevel(
                num_blocks,
                width,
                has_pools=config.has_pools and level == last,
                resample=nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False) if level else None,
            )
            for level, num_blocks in enumerate(config.encoder_blocks)
        )
        self.to_latents = nn.Conv2d(width, config.latent_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for level in self.levels:
            assert isinstance(level, TinyLevel)
            x = level.blocks(x if level.resample is None else level.resample(x))
        return self.to_latents(x)


class TinyDecoder(nn.Module):
    """Latents (B, d, h, w) → images (B, C, f·h, f·w), about in [0, 1]."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        width, last = config.hidden_channels, len(config.decoder_blocks) - 1
        self.from_latents = nn.Conv2d(config.latent_channels, width, 3, padding=1)
        self.levels = nn.ModuleList(
            TinyLevel(
                num_blocks,
                width,
                has_pools=config.has_pools and place == 0,
                resample=nn.Conv2d(width, width, 3, padding=1, bias=False) if place < last else None,
            )
            for place, num_blocks in enumerate(config.decoder_blocks)
        )
        self.to_pixels = nn.Conv2d(width, config.image_channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        bounded = torch.tanh(latents / _LATENT_BOUND) * _LATENT_BOUND
        x = F.relu(self.from_latents(bounded), inplace=True)
        for level in self.levels:
            assert isinstance(level, TinyLevel)
            x = level.blocks(x)
            if level.resample is not None:
                x = level.resample(F.interpolate(x, scale_factor=2, mode="nearest"))
        return self.to_pixels(x)
