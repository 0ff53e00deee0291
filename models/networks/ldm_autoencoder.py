"""The encoder and decoder of VQGAN and of latent diffusion, which most public autoencoders of images have.

Esser et al. 2021 (arXiv:2012.09841), Rombach et al. 2022 (arXiv:2112.10752). Levels are numbered from full
resolution; between two, the grid halves or doubles.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.options import CHECKED, ConfigError

Channels = Annotated[int, Field(ge=1, le=8192)]
_EPS = 1e-6  # of every GroupNorm


@dataclass(frozen=True, config=CHECKED)
class LdmConfig:
    """The shape of the two networks.

    ``level_channels`` start at full resolution, and their number says how often it is halved: once less.
    ``stem_channels``: of the encoder's first convolution, None for those of the first level. The encoder has
    ``num_blocks`` residual blocks a level, the decoder one more. ``attention_levels``: those with
    self-attention behind every block. ``has_moments``: the encoder returns mean and log-variance, so twice
    ``latent_channels``. ``has_tanh``: the decoder ends with it.
    """

    image_channels: Annotated[int, Field(ge=1, le=16)] = 3
    latent_channels: Channels = 256
    level_channels: Annotated[tuple[Channels, ...], Field(min_length=1, max_length=8)] = (128, 256, 512)
    stem_channels: Channels | None = None
    num_blocks: Annotated[int, Field(ge=1, le=16)] = 2
    attention_levels: tuple[Annotated[int, Field(ge=0)], ...] = ()
    has_middle_attention: bool = True
    has_moments: bool = False
    has_tanh: bool = False
    num_groups: Annotated[int, Field(ge=1, le=256)] = 32

    def __post_init__(self) -> None:
        for channels in (self.stem_channels or self.level_channels[0], *self.level_channels):
            if channels % self.num_groups:
                raise ConfigError(
                    f"level_channels and stem_channels must be multiples of num_groups {self.num_groups},"
                    f" got {channels}"
                )
        if any(level >= len(self.level_channels) for level in self.attention_levels):
            raise ConfigError(
                f"attention_levels must be below {len(self.level_channels)}, the number of level_channels,"
                f" got {self.attention_levels}"
            )

    @property
    def downsample_factor(self) -> int:
        """The side in pixels of the square behind one latent."""
        return 2 ** (len(self.level_channels) - 1)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions beside a skip connection, which is a 1×1 convolution where the width changes."""

    def __init__(self, inputs: int, outputs: int, num_groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(num_groups, inputs, _EPS)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(num_groups, outputs, _EPS)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(_normed(self.norm1, x))
        return self.conv2(_normed(self.norm2, h)).add_(self.shortcut(x))


class SpatialAttention(nn.Module):
    """Self-attention with one head over all places of a grid, beside a skip connection."""

    def __init__(self, channels: int, num_groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(num_groups, channels, _EPS)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        places = self.norm(x).flatten(2).transpose(1, 2)[:, None]  # (B, 1, H·W, C)
        mixed = F.scaled_dot_product_attention(self.query(places), self.key(places), self.value(places))
        return x + self.out(mixed)[:, 0].transpose(1, 2).unflatten(2, x.shape[2:])  # (B, C, H, W)


class Downsample(nn.Module):
    """Halve the grid by a strided convolution, padded at the right and at the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # (B, C, H/2, W/2)


class Upsample(nn.Module):
    """Double the grid by repeating every value, then convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))  # (B, C, 2·H, 2·W)


class Level(nn.Module):
    """The residual blocks at one resolution, then the step to the next, ``resample``."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        num_blocks: int,
        num_groups: int,
        *,
        has_attention: bool,
        resample: nn.Module,
    ) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * num_blocks
        self.blocks = nn.ModuleList(
            ResidualBlock(width, outputs, num_groups) for width in widths[:num_blocks]
        )
        self.attentions = nn.ModuleList(
            SpatialAttention(outputs, num_groups) if has_attention else nn.Identity() for _ in self.blocks
        )
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            x = attention(block(x))
        return self.resample(x)


class LdmEncoder(nn.Module):
    """Images (B, C, H, W) → latents (B, d, H/f, W/f), or their moments (B, 2·d, H/f, W/f)."""

    def __init__(self, config: LdmConfig) -> None:
        super().__init__()
        widths = config.level_channels
        stem = config.stem_channels or widths[0]
        last = len(widths) - 1
        self.stem = nn.Conv2d(config.image_channels, stem, 3, padding=1)
        self.levels = nn.Sequential(
            *(
                Level(
                    inputs,
                    outputs,
                    config.num_blocks,
                    config.num_groups,
                    has_attention=level in config.attention_levels,
                    resample=nn.Identity() if level == last else Downsample(outputs),
                )
                for level, (inputs, outputs) in enumerate(zip((stem, *widths), widths, strict=False))
            )
        )
        self.middle = _make_middle(widths[-1], config)
        self.norm = nn.GroupNorm(config.num_groups, widths[-1], _EPS)
        outputs = config.latent_channels * (2 if config.has_moments else 1)
        self.to_latents = nn.Conv2d(widths[-1], outputs, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.middle(self.levels(self.stem(images)))  # (B, hidden, H/f, W/f)
        return self.to_latents(_normed(self.norm, x))  # (B, d or 2·d, H/f, W/f)


class LdmDecoder(nn.Module):
    """Latents (B, d, h, w) → images (B, C, f·h, f·w). Its levels come from the coarsest to the finest."""

    def __init__(self, config: LdmConfig) -> None:
        super().__init__()
        widths = config.level_channels[::-1]
        last = len(widths) - 1
        self.has_tanh = config.has_tanh
        self.from_latents = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.middle = _make_middle(widths[0], config)
        self.levels = nn.Sequential(
            *(
                Level(
                    inputs,
                    outputs,
                    config.num_blocks + 1,
                    config.num_groups,
                    has_attention=last - place in config.attention_levels,
                    resample=nn.Identity() if place == last else Upsample(outputs),
                )
                for place, (inputs, outputs) in enumerate(zip((widths[0], *widths), widths, strict=False))
            )
        )
        self.norm = nn.GroupNorm(config.num_groups, widths[-1], _EPS)
        self.to_pixels = nn.Conv2d(widths[-1], config.image_channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.levels(self.middle(self.from_latents(latents)))  # (B, hidden, H, W)
        images = self.to_pixels(_normed(self.norm, x))  # (B, C, H, W)
        return torch.tanh(images) if self.has_tanh else images


def _make_middle(channels: int, config: LdmConfig) -> nn.Sequential:
    """Return what lies between the levels and the latents: a block, attention or nothing, a block."""
    has_attention = config.has_middle_attention
    return nn.Sequential(
        ResidualBlock(channels, channels, config.num_groups),
        SpatialAttention(channels, config.num_groups) if has_attention else nn.Identity(),
        ResidualBlock(channels, channels, config.num_groups),
    )


def _normed(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """Return x (B, C, H, W) normalised, then passed through SiLU, in the same memory."""
    return F.silu(norm(x), inplace=True)
