"""The tokenizer of pictures: image ⇄ latents ⇄ codes."""

import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.autoencoders.quantizers import FSQ, Quantized, Quantizer, VectorQuantizer, keep_infinite
from models.checkpoint import fingerprint, load_checkpoint, load_into
from models.options import CHECKED, ConfigError, Count

AnyModule = TypeVar("AnyModule", bound=nn.Module)
QuantizerName = Literal["vector", "fsq"]
# The fields that a fingerprint is taken over. One that is added later, with a default, counts only where it
# is set: so codes that people keep stay good.
_FINGERPRINTED = (
    "image_channels",
    "image_size_px",
    "downsample_factor",
    "hidden_channels",
    "channel_growth",
    "num_blocks",
    "latent_channels",
    "codebook_size",
    "quantizer",
    "fsq_levels",
)


@dataclass(frozen=True, config=CHECKED)
class TokenizerConfig:
    """The shape of a tokenizer: image ⇄ latents ⇄ codes.

    ``downsample_factor`` is the side of the pixel square behind one code. The first stage, at half of the
    resolution, has ``hidden_channels``, and each further halving ``channel_growth`` times more.
    ``fsq_levels`` belongs to ``quantizer="fsq"``: they multiply to ``codebook_size`` and number
    ``latent_channels``.
    """

    image_channels: Literal[1, 3] = 1
    image_size_px: Annotated[int, Field(ge=4, le=4096)] = 28
    downsample_factor: Literal[2, 4, 8, 16, 32] = 2
    hidden_channels: Count = 64
    channel_growth: Annotated[int, Field(ge=1, le=8)] = 1
    num_blocks: Annotated[int, Field(ge=0)] = 2
    latent_channels: Count = 4
    codebook_size: Annotated[int, Field(ge=2, le=2**20)] = 1024
    quantizer: QuantizerName = "vector"
    fsq_levels: tuple[Annotated[int, Field(ge=2)], ...] = ()

    def __post_init__(self) -> None:
        if self.image_size_px % self.downsample_factor:
            raise ConfigError(
                f"image_size_px must be a multiple of downsample_factor {self.downsample_factor},"
                f" got {self.image_size_px}"
            )
        if self.quantizer == "vector" and self.fsq_levels:
            raise ConfigError("fsq_levels is only for quantizer 'fsq'")
        if self.quantizer == "fsq" and (
            math.prod(self.fsq_levels) != self.codebook_size or len(self.fsq_levels) != self.latent_channels
        ):
            raise ConfigError(
                f"fsq_levels must multiply to codebook_size {self.codebook_size} and number"
                f" latent_channels {self.latent_channels}, got {self.fsq_levels}"
            )

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of each stage, from half of the resolution to that of the codes."""
        num_halvings = self.downsample_factor.bit_length() - 1
        return tuple(self.hidden_channels * self.channel_growth**stage for stage in range(num_halvings))

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of codes."""
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
    """Images (B, C, H, W) → latents (B, d, H/f, W/f).

    Every halving is a pixel-unshuffle before a convolution, so nothing is convolved at full resolution.
    """

    def __init__(self, config: TokenizerConfig) -> None:
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
        self.to_latents = nn.Conv2d(channels, config.latent_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stages(images)  # (B, hidden, H/f, W/f)
        return self.to_latents(F.silu(self.norm(x)))  # (B, d, H/f, W/f)


class Decoder(nn.Module):
    """Latents (B, d, H/f, W/f) → images (B, C, H, W); the encoder's mirror image."""

    def __init__(self, config: TokenizerConfig) -> None:
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


class Tokenizer(nn.Module):
    """A frozen pair of functions between images and codes, with the latents between them.

    Latents are scaled to zero mean and unit standard deviation per channel (``latent_mean``,
    ``latent_std``: measured at the end of training), which is what a prior learns to sample.
    ``quantize(latents).latents == lookup(codes)`` holds exactly.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quantizer = _make_quantizer(config)
        self.decoder = Decoder(config)
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(config.latent_channels, 1, 1))

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Load one safetensors file that knows its own configuration; frozen.

        Raises: CheckpointError.
        """
        tensors, config = load_checkpoint(path, TokenizerConfig)
        tokenizer = cls(config)
        load_into(tokenizer, {**tokenizer.training_only_tensors(), **tensors}, path)
        return tokenizer.eval().requires_grad_(False)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(d, *grid) of one sample's latents."""
        return (self.config.latent_channels, *self.config.grid)

    @property
    def signal_shape(self) -> tuple[int, ...]:
        """(C, *size) of one sample's signal."""
        return (self.config.image_channels, self.config.image_size_px, self.config.image_size_px)

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that tell this tokenizer, and so its codes, from all others."""
        values, defaults = asdict(self.config), asdict(TokenizerConfig())
        named = {
            each.name: values[each.name]
            for each in fields(self.config)
            if each.name in _FINGERPRINTED or values[each.name] != defaults[each.name]
        }
        return fingerprint(named, self.exported())

    def encode(self, images: Tensor) -> Tensor:
        """Return scaled latents (B, d, h, w) float32 of ``images`` (B, C, H, W) in [-1, 1]."""
        return (self.quantizer.squash(self.encoder(images)) - self.latent_mean) / self.latent_std

    def quantize(self, latents: Tensor) -> Quantized:
        """Snap scaled ``latents`` (B, d, h, w) to the codebook; the result is scaled, too."""
        quantized = self.quantizer.quantize(latents * self.latent_std + self.latent_mean)
        scaled = (quantized.latents - self.latent_mean) / self.latent_std
        return Quantized(scaled, quantized.codes, quantized.loss)

    def lookup(self, codes: Tensor) -> Tensor:
        """Return the scaled latents (B, d, h, w) of ``codes`` (B, h, w)."""
        return (self.quantizer.lookup(codes) - self.latent_mean) / self.latent_std

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, C, H, W) float32 in [-1, 1] of scaled ``latents`` (B, d, h, w)."""
        images = self.decoder(latents * self.latent_std + self.latent_mean).float()
        return keep_infinite(images.clamp(-1, 1), images)

    def exported(self) -> dict[str, Tensor]:
        """Return the tensors that encoding and decoding need, without those of training alone."""
        training_only = self.training_only_tensors()
        return {name: tensor for name, tensor in self.state_dict().items() if name not in training_only}

    def training_only_tensors(self) -> dict[str, Tensor]:
        """Return the tensors that only training needs: the codebook's moving averages."""
        endings = ("num_assigned", "sum_assigned", "is_initialised")
        return {name: tensor for name, tensor in self.state_dict().items() if name.endswith(endings)}

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Return images (B, C, H, W) in [-1, 1] of ``codes`` (B, h, w)."""
        return self.decode(self.lookup(codes))


def channels_last(module: AnyModule) -> AnyModule:
    """Lay a module's convolutions out as processors like them best; the numbers stay the same."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _make_quantizer(config: TokenizerConfig) -> Quantizer:
    """Return the quantiser that ``config`` names."""
    if config.quantizer == "fsq":
        return FSQ(config.fsq_levels)
    return VectorQuantizer(config.codebook_size, config.latent_channels)


def _num_groups(channels: int) -> int:
    """Return GroupNorm's number of groups: 8, or fewer where they would not divide the channels."""
    return next(groups for groups in (8, 4, 2, 1) if channels % groups == 0)
