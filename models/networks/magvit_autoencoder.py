"""The encoders and decoders of MaskGIT's, Open-MAGVIT2's and SimVQ's tokenizers of images.

They are VQGAN's without attention and, in most convolutions, without biases. Chang et al. 2022
(arXiv:2202.04200), Luo et al. 2024 (arXiv:2409.04410), Zhu et al. 2024 (arXiv:2411.02038).
"""

from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.networks.ldm_autoencoder import Channels
from models.options import CHECKED, ConfigError

_EPS = 1e-6
_NUM_GROUPS = 32
Style = Literal["maskgit", "open_magvit2", "simvq"]


@dataclass(frozen=True, config=CHECKED)
class MagvitConfig:
    """The shape of the two networks.

    ``level_channels`` start at full resolution. There are ``num_blocks`` residual blocks a level and in the
    middle. ``style``: whose they are. MaskGIT's halve by averaging and double by repeating values, and where
    the width changes, a block adds to its output a 1×1 convolution of it, without the input. The others halve
    by a strided convolution and double by turning channels into space; Open-MAGVIT2's decoder has adaptive
    norms.
    """

    style: Style
    image_channels: Annotated[int, Field(ge=1, le=16)] = 3
    latent_channels: Channels = 256
    stem_channels: Channels = 128
    level_channels: Annotated[tuple[Channels, ...], Field(min_length=1, max_length=8)] = (128, 256, 512)
    num_blocks: Annotated[int, Field(ge=1, le=16)] = 2

    def __post_init__(self) -> None:
        for channels in (self.stem_channels, *self.level_channels):
            if channels % _NUM_GROUPS:
                raise ConfigError(
                    f"stem_channels and level_channels must be multiples of {_NUM_GROUPS}, got {channels}"
                )

    @property
    def downsample_factor(self) -> int:
        """The side in pixels of the square behind one latent."""
        return 2 ** (len(self.level_channels) - 1)


class Block(nn.Module):
    """Two 3×3 convolutions beside a skip connection, none of them with a bias."""

    def __init__(self, inputs: int, outputs: int, style: Style) -> None:
        super().__init__()
        self.is_shortcut_of_output = style == "maskgit"
        self.norm1 = nn.GroupNorm(_NUM_GROUPS, inputs, _EPS)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(_NUM_GROUPS, outputs, _EPS)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            width = outputs if self.is_shortcut_of_output else inputs
            self.shortcut = nn.Conv2d(width, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(_normed(self.norm1, x))
        h = self.conv2(_normed(self.norm2, h))
        changes_width = not isinstance(self.shortcut, nn.Identity)
        return h + self.shortcut(h if changes_width and self.is_shortcut_of_output else x)


class Upsample(nn.Module):
    """Double the grid: a convolution of repeated values, or one whose channels become space."""

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        self.repeats = style == "maskgit"
        self.conv = nn.Conv2d(channels, channels * (1 if self.repeats else 4), 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.repeats:
            return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))  # (B, C, 2·H, 2·W)
        h = self.conv(x).unflatten(1, (2, 2, -1))  # (B, rows, columns, C, H, W)
        h = h.permute(0, 3, 4, 1, 5, 2)  # (B, C, H, rows, W, columns)
        return h.flatten(4).flatten(2, 3)  # (B, C, 2·H, 2·W)


class AdaptiveNorm(nn.Module):
    """A norm whose scale and offset come from the spread and the mean of the latents that are decoded."""

    def __init__(self, latent_channels: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_NUM_GROUPS, channels, _EPS, affine=False)
        self.scale = nn.Linear(latent_channels, channels)
        self.offset = nn.Linear(latent_channels, channels)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        places = latents.flatten(2)  # (B, d, h·w)
        scale = self.scale((places.var(-1) + _EPS).sqrt())[:, :, None, None]  # (B, C, 1, 1)
        offset = self.offset(places.mean(-1))[:, :, None, None]  # (B, C, 1, 1)
        return scale * self.norm(x) + offset


class Level(nn.Module):
    """The residual blocks at one resolution, then the step to the next, ``resample``."""

    def __init__(
        self, inputs: int, outputs: int, config: MagvitConfig, resample: nn.Module, *, norms: bool = False
    ) -> None:
        super().__init__()
        self.adaptive = AdaptiveNorm(config.latent_channels, inputs) if norms else None
        self.blocks = _blocks(inputs, outputs, config)
        self.resample = resample

    def forward(self, x: Tensor, latents: Tensor | None = None) -> Tensor:
        if self.adaptive is not None:
            assert latents is not None
            x = self.adaptive(x, latents)
        return self.resample(self.blocks(x))


class MagvitEncoder(nn.Module):
    """Images (B, C, H, W) → latents (B, d, H/f, W/f)."""

    def __init__(self, config: MagvitConfig) -> None:
        super().__init__()
        widths, last = config.level_channels, len(config.level_channels) - 1
        self.stem = nn.Conv2d(config.image_channels, config.stem_channels, 3, padding=1, bias=False)
        self.levels = nn.Sequential(
            *(
                Level(inputs, outputs, config, nn.Identity() if level == last else _halve(outputs, config))
                for level, (inputs, outputs) in enumerate(
                    zip((config.stem_channels, *widths), widths, strict=False)
                )
            )
        )
        self.middle = _blocks(widths[-1], widths[-1], config)
        self.norm = nn.GroupNorm(_NUM_GROUPS, widths[-1], _EPS)
        self.to_latents = nn.Conv2d(widths[-1], config.latent_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.middle(self.levels(self.stem(images)))  # (B, hidden, H/f, W/f)
        return self.to_latents(_normed(self.norm, x))  # (B, d, H/f, W/f)


class MagvitDecoder(nn.Module):
    """Latents (B, d, h, w) → images (B, C, f·h, f·w). Its levels come from the coarsest to the finest."""

    def __init__(self, config: MagvitConfig) -> None:
        super().__init__()
        widths, last = config.level_channels[::-1], len(config.level_channels) - 1
        norms = config.style == "open_magvit2"
        self.from_latents = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.middle = _blocks(widths[0], widths[0], config)
        self.levels = nn.ModuleList(
            Level(
                inputs,
                outputs,
                config,
                nn.Identity() if place == last else Upsample(outputs, config.style),
                norms=norms,
            )
            for place, (inputs, outputs) in enumerate(zip((widths[0], *widths), widths, strict=False))
        )
        self.norm = nn.GroupNorm(_NUM_GROUPS, widths[-1], _EPS)
        self.to_pixels = nn.Conv2d(widths[-1], config.image_channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.middle(self.from_latents(latents))  # (B, hidden, h, w)
        for level in self.levels:
            x = level(x, latents)
        return self.to_pixels(_normed(self.norm, x))  # (B, C, H, W)


def _halve(channels: int, config: MagvitConfig) -> nn.Module:
    if config.style == "maskgit":
        return nn.AvgPool2d(2)
    return nn.Conv2d(channels, channels, 3, stride=2, padding=1)


def _blocks(inputs: int, outputs: int, config: MagvitConfig) -> nn.Sequential:
    widths = [inputs] + [outputs] * (config.num_blocks - 1)
    return nn.Sequential(*(Block(width, outputs, config.style) for width in widths))


def _normed(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """Return x (B, C, H, W) normalised, then passed through SiLU, in the same memory."""
    return F.silu(norm(x), inplace=True)
