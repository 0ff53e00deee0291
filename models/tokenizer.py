"""The tokenizer: image ⇄ latents ⇄ codes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import TokenizerConfig
from models.quantizers import Quantized, make_quantizer


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
        self.quantizer = make_quantizer(config)
        self.decoder = Decoder(config)
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(config.latent_channels, 1, 1))

    def encode(self, images: Tensor) -> Tensor:
        """Return scaled latents (B, d, h, w) float32 of ``images`` (B, C, H, W) in [-1, 1]."""
        return (self.quantizer.bound(self.encoder(images)) - self.latent_mean) / self.latent_std

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
        unscaled = latents * self.latent_std + self.latent_mean
        return self.decoder(unscaled).float().clamp(-1, 1)

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


def channels_last(tokenizer: Tokenizer) -> Tokenizer:
    """Lay its convolutions out as processors like them best; the numbers stay the same."""
    return tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _num_groups(channels: int) -> int:
    """Return GroupNorm's number of groups: 8, or fewer where they would not divide the channels."""
    return next(groups for groups in (8, 4, 2, 1) if channels % groups == 0)
