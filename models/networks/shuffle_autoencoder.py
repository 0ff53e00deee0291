"""The encoder and decoder of our own autoencoders of pictures: convolutions between pixel-shuffles."""

from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.options import CHECKED, ConfigError, Count


@dataclass(frozen=True, config=CHECKED)
class ShuffleConfig:
    """The shape of an encoder and a decoder: image ⇄ latents.

    ``downsample_factor`` is the side of the pixel square behind one latent. The first stage, at half of the
    resolution, has ``hidden_channels``, and each further halving ``channel_growth`` times more.
    """

    image_channels: Literal[1, 3] = 1
    image_size_px: Annotated[int, Field(ge=4, le=4096)] = 28
    downsample_factor: Literal[2, 4, 8, 16, 32] = 2
    hidden_channels: Count = 64
    channel_growth: Annotated[int, Field(ge=1, le=8)] = 1
    num_blocks: Annotated[int, Field(ge=0)] = 2
    latent_channels: Count = 4

    def __post_init__(self) -> None:
        if self.image_size_px % self.downsample_factor:
            raise ConfigError(
                f"image_size_px must be a multiple of downsample_factor {self.downsample_factor},"
                f" got {self.image_size_px}"
            )

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of each stage, from half of the resolution to that of the latents."""
        num_halvings = self.downsample_factor.bit_length() - 1
        return tuple(self.hidden_channels * self.channel_growth**stage for stage in range(num_halvings))

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of latents."""
        side = self.image_size_px // self.downsample_factor
        return side, side


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with a skip connection; starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(_num_groups(channels), channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(_num_groups(channels), channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class Encoder(nn.Module):
    """Images (B, C, H, W) → ``out_channels``, or latents, (B, d, H/f, W/f).

    Every halving is a pixel-unshuffle before a convolution, so nothing is convolved at full resolution.
    """

    def __init__(self, config: ShuffleConfig, out_channels: int | None = None) -> None:
        super().__init__()
        channels: int = config.image_channels
        stages: list[nn.Module] = []
        for stage_channels in config.stage_channels:
            stages += [
                nn.PixelUnshuffle(2),
                nn.Conv2d(4 * channels, stage_channels, 3, padding=1),
                *(ResidualBlock(stage_channels) for _ in range(config.num_blocks)),
            ]
            channels = stage_channels
        self.stages = nn.Sequential(*stages)
        self.norm = nn.GroupNorm(_num_groups(channels), channels)
        self.to_latents = nn.Conv2d(channels, out_channels or config.latent_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stages(images)  # (B, hidden, H/f, W/f)
        return self.to_latents(F.silu(self.norm(x)))  # (B, d, H/f, W/f)


class Decoder(nn.Module):
    """Latents (B, d, H/f, W/f) → images (B, C, H, W); the encoder's mirror image."""

    def __init__(self, config: ShuffleConfig) -> None:
        super().__init__()
        channels, *wider = reversed(config.stage_channels)
        self.from_latents = nn.Conv2d(config.latent_channels, channels, 3, padding=1)
        stages: list[nn.Module] = []
        for next_channels in [*wider, None]:
            stages += [ResidualBlock(channels) for _ in range(config.num_blocks)]
            if next_channels is not None:
                stages += [nn.Conv2d(channels, 4 * next_channels, 3, padding=1), nn.PixelShuffle(2)]
                channels = next_channels
        self.stages = nn.Sequential(*stages)
        self.norm = nn.GroupNorm(_num_groups(channels), channels)
        last = nn.Conv2d(channels, 4 * config.image_channels, 3, padding=1)
        self.to_pixels = nn.Sequential(last, nn.PixelShuffle(2))

    @property
    def last_weights(self) -> Tensor:
        """Those that every pixel passes; adversarial training weighs its losses by their gradients."""
        return self.get_parameter("to_pixels.0.weight")

    def forward(self, latents: Tensor) -> Tensor:
        x = self.stages(self.from_latents(latents))  # (B, hidden, H/2, W/2)
        return self.to_pixels(F.silu(self.norm(x)))  # (B, C, H, W)


def _num_groups(channels: int) -> int:
    """Return GroupNorm's number of groups: 8, or fewer where they would not divide the channels."""
    return next(groups for groups in (8, 4, 2, 1) if channels % groups == 0)
